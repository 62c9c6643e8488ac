"""What the kernels assume of their tensors, checked by the launchers. A violation is the caller's bug: ValueError."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.system.errors import DeviceError

if TYPE_CHECKING:
    from kvtool.kernels.fused import Choice
    from kvtool.kernels.interface import Rotation
    from kvtool.kernels.pages import Pages, Scale
    from kvtool.kernels.rows import Rows, Softmax
    from kvtool.kernels.weights import ExpertWeights

QUERY_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
CACHE_DTYPES = (*QUERY_DTYPES, *FP8_DTYPES, torch.int8)
FP8_CAPABILITY = (8, 9)


def attention(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> None:
    """q [*,HQ,D] of as many columns as the keys of the pages have."""
    layer(pages)
    require(q.ndim == 3 and q.shape[2] == _key_dim(pages), f"q {shape(q)} does not fit k_cache {shape(pages.k)}")
    kv_heads = 1 if pages.v is None else pages.k.shape[2]
    require(q.shape[1] % kv_heads == 0, f"{q.shape[1]} query heads on {kv_heads} KV heads")
    require(q.dtype in QUERY_DTYPES, f"q is {q.dtype}, not one of {QUERY_DTYPES}")
    require(q.stride(2) == 1, "the last dimension of q must be contiguous")
    scores(softmax, num_heads=q.shape[1])
    sequences(rows.block_tables, rows.seq_lens)


def layer(pages: Pages) -> None:
    """k [P,B,HKV,D], v [P,B,HKV,DV] and k_rope [P,B,E] of one dtype, or latents."""
    if pages.v is None:
        latents(pages)
        return
    k, v = pages.k, pages.v
    cache(k, "k_cache", ndim=4)
    cache(v, "v_cache", ndim=4)
    require(k.shape[:3] == v.shape[:3], f"k_cache {shape(k)} and v_cache {shape(v)} differ")
    require(k.dtype == v.dtype, f"k_cache is {k.dtype}, v_cache {v.dtype}")
    scales(pages.k_scale, pages.v_scale, k)
    shared_keys(pages.k_rope, k, pages.k_scale)


def latents(pages: Pages) -> None:
    """k [P,B,R+E], R = latent_dim, and k_scale a number or fp32 [P,B,2]: of the latent, then of the rotary key."""
    pool, scale = pages.k, pages.k_scale
    require(pool.ndim == 3, f"a latent cache is [pages, block, latent + rope], not {shape(pool)}")
    cache(pool, "the cache", ndim=3)
    require(0 < pages.latent_dim < pool.shape[2], f"latent_dim {pages.latent_dim} of a row of {pool.shape[2]}")
    if isinstance(scale, Tensor):
        require(scale.dtype == torch.float32, f"scales beside the cache are fp32, not {scale.dtype}")
        require(scale.shape == (*pool.shape[:2], 2), f"scales {shape(scale)} do not fit the cache {shape(pool)}")


def _key_dim(pages: Pages) -> int:
    return int(pages.k.shape[-1]) + (0 if pages.k_rope is None else int(pages.k_rope.shape[-1]))


def queries(q: Tensor, seq_lens: Tensor) -> None:
    """The same number of queries for each sequence."""
    even = len(seq_lens) > 0 and len(q) % len(seq_lens) == 0
    require(even or len(q) == 0, f"{len(q)} queries for {len(seq_lens)} sequences")


def scores(softmax: Softmax, num_heads: int) -> None:
    """sinks [HQ] in a floating dtype."""
    require(softmax.window >= 0, f"window is {softmax.window}, not 0 (none) or more")
    require(softmax.softcap >= 0, f"softcap is {softmax.softcap}, not 0 (none) or more")
    sinks = softmax.sinks
    if sinks is not None:
        require(sinks.shape == (num_heads,), f"sinks {shape(sinks)} for {num_heads} query heads")
        require(sinks.is_floating_point() and sinks.is_contiguous(), "sinks must be contiguous floating-point logits")


def scales(k_scale: Scale, v_scale: Scale, pool: Tensor) -> None:
    """Two numbers, or two tensors fp32 [P,B,HKV] laid out alike, of pool [P,B,HKV,*]."""
    tensors = [scale for scale in (k_scale, v_scale) if isinstance(scale, Tensor)]
    require(len(tensors) != 1, "k_scale and v_scale must both be numbers or both be tensors")
    for scale in tensors:
        require(scale.dtype == torch.float32, f"scales beside the cache are fp32, not {scale.dtype}")
        require(scale.shape == pool.shape[:3], f"scales {shape(scale)} do not fit the cache {shape(pool)}")
        require(scale.stride() == tensors[0].stride(), "k_scale and v_scale must be laid out alike")


def split_qkv(qkv: Tensor, norms: Tensor | None, rotation: Rotation | None, pages: Pages, slots: Tensor) -> None:
    """qkv [T,HQ+2*HKV,D] of rows side by side, norms [HQ+HKV,D], rotation [T,1,E] twice, k and v [P,B,HKV,D]."""
    k_cache, v_cache = pages.k, pages.v
    require(v_cache is not None, "latents have no K and V to split")
    assert v_cache is not None
    kv_heads, head_dim = k_cache.shape[2], qkv.shape[2]
    require(qkv.stride(1) == head_dim and qkv.stride(2) == 1, "the heads of a token of qkv must lie side by side")
    require(qkv.shape[1] > 2 * kv_heads, f"qkv {shape(qkv)} has no query beside {kv_heads} KV heads")
    require(k_cache.dtype == v_cache.dtype, f"k_cache is {k_cache.dtype}, v_cache {v_cache.dtype}")
    store(qkv[:, -kv_heads:], k_cache, slots)
    store(qkv[:, -kv_heads:], v_cache, slots)
    turned = (qkv.shape[1] - kv_heads, head_dim)
    require(norms is None or (norms.shape == turned and norms.is_contiguous()), f"norms are not contiguous {turned}")
    scales(pages.k_scale, pages.v_scale, k_cache)
    tables: tuple[Tensor, ...] = rotation or ()
    for table in tables:
        width = table.shape[-1]
        fits = table.shape == (len(qkv), 1, width) and 0 < width <= head_dim
        require(fits, f"rotation {shape(table)} does not fit qkv {shape(qkv)}")
        require(width % 2 == 0, f"a head of {width} has no two halves to turn")
        require(table.stride() == tables[0].stride() and table.stride(2) == 1, "cos and sin must be laid out alike")


def split_latent(
    q: Tensor,
    rows: Tensor,
    norm: Tensor,
    rotation: Rotation,
    pages: Pages,
    slots: Tensor,
    num_absorbed: int,
) -> None:
    """q [T,H,N+E], rows [T,R+E], norm [R], rotation [T,1,E] twice, latents [P,B,R+E] with latent_dim R."""
    latent_dim, rope_dim = len(norm), rotation[0].shape[-1]
    require(rows.shape[1] == latent_dim + rope_dim, f"rows {shape(rows)} are not {latent_dim} + {rope_dim}")
    require(q.ndim == 3 and len(q) == len(rows), f"q {shape(q)} for {len(rows)} tokens")
    require(q.shape[2] > rope_dim and q.stride(2) == 1, f"q {shape(q)} has no rotary part of {rope_dim} at its end")
    require(rope_dim % 2 == 0, f"a rotary part of {rope_dim} has no two halves to turn")
    require(0 <= num_absorbed <= len(q), f"{num_absorbed} of {len(q)} tokens")
    norms(latent_dim, norm)
    latents(pages)
    require(pages.latent_dim == latent_dim, f"a norm of {latent_dim} for latents of {pages.latent_dim}")
    store(rows.unsqueeze(1), pages.k.unsqueeze(2), slots)
    for table in rotation:
        require(table.shape == (len(q), 1, rope_dim), f"rotation {shape(table)} does not fit q {shape(q)}")
        require(table.stride() == rotation[0].stride() and table.stride(2) == 1, "cos and sin must be laid out alike")


def absorbing(q: Tensor, w_uk: Tensor | None, latent_dim: int, num_absorbed: int) -> None:
    """w_uk [H,N,R], of rows side by side, for q [T,H,N+E] of tokens that all decode."""
    if w_uk is None:
        return
    fits = w_uk.ndim == 3 and w_uk.shape[0] == q.shape[1] and w_uk.shape[2] == latent_dim
    require(fits and w_uk.shape[1] < q.shape[2], f"matrices {shape(w_uk)} do not absorb q {shape(q)}")
    require(w_uk.stride()[1:] == (latent_dim, 1), "the matrices that absorb a query must have contiguous rows")
    require(num_absorbed == len(q), f"{num_absorbed} of {len(q)} tokens absorb their queries")


def rows(*tensors: Tensor) -> None:
    """[T,n], all alike, of rows that are contiguous."""
    for tensor in tensors:
        require(tensor.ndim == 2 and tensor.shape == tensors[0].shape, f"rows {shape(tensor)} and {shape(tensors[0])}")
        require(tensor.stride(1) == 1, "the last dimension of the rows must be contiguous")
        require(tensor.dtype == tensors[0].dtype, f"rows of {tensor.dtype} and {tensors[0].dtype}")


def norms(size: int, *weights: Tensor | None) -> None:
    """[n] of rows of n, contiguous."""
    for weight in weights:
        fits = weight is None or (weight.shape == (size,) and weight.is_contiguous())
        require(fits, f"a norm is not {size} weights side by side")


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    norm: Tensor | None = None,
    *,
    is_gated: bool = False,
) -> None:
    """x [T,K], weight [N,K], bias [N] and plus [T,N], [T,N/2] if gated, of one dtype and with contiguous rows; norm [K]
    of any."""
    require(x.ndim == 2 and weight.ndim == 2, f"x {shape(x)} and weight {shape(weight)} are not matrices")
    require(x.shape[1] == weight.shape[1], f"x {shape(x)} does not fit weight {shape(weight)}")
    require(bias is None or bias.shape == weight.shape[:1], "the bias does not fit the weight")
    require(not is_gated or len(weight) % 2 == 0, f"weight {shape(weight)} has no two halves")
    columns = len(weight) // 2 if is_gated else len(weight)
    require(plus is None or plus.shape == (len(x), columns), "what is added does not fit the product")
    norms(x.shape[1], norm)
    for tensor in (x, weight, bias, plus):
        if tensor is not None:
            require(tensor.dtype == x.dtype, f"a product of {x.dtype} and {tensor.dtype}")
            require(tensor.stride(-1) == 1, "the last dimension of what is multiplied must be contiguous")


def choice(x: Tensor, choice: Choice) -> None:
    """x [T,H] of contiguous rows, fp32 weight [E,H] and biases [E]."""
    num_experts, hidden = choice.weight.shape
    require(x.ndim == 2 and x.shape[1] == hidden, f"x {shape(x)} does not fit a router {shape(choice.weight)}")
    require(x.stride(1) == 1, "the last dimension of the rows must be contiguous")
    require(0 < choice.top_k <= num_experts, f"{choice.top_k} of {num_experts} experts")
    require(num_experts % choice.groups == 0, f"{num_experts} experts in {choice.groups} groups")
    for tensor in (choice.weight, choice.logit_bias, choice.bias):
        fits = tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous())
        require(fits, "what a router has is fp32 and contiguous")


def experts(x: Tensor, weights: ExpertWeights, chosen: Tensor, shares: Tensor, plus: Tensor | None) -> None:
    """x and plus [T,H], weights [E,2I,H] and [E,H,I] with biases [E,2I] and [E,H], chosen and shares [T,k]."""
    num_experts, hidden, width = weights.down.shape
    require(x.ndim == 2 and x.shape[1] == hidden, f"x {shape(x)} does not fit experts {shape(weights.down)}")
    stacked = (num_experts, 2 * width, hidden)
    require(weights.gate_up.shape == stacked, f"gate and up {shape(weights.gate_up)} are not {list(stacked)}")
    biases = ((weights.gate_up_bias, stacked[:2]), (weights.down_bias, (num_experts, hidden)))
    for bias, expected in biases:
        require(bias is None or bias.shape == expected, f"biases are not {list(expected)}")
    require(chosen.ndim == 2 and len(chosen) == len(x), f"chosen {shape(chosen)} does not fit x {shape(x)}")
    require(shares.shape == chosen.shape, f"shares {shape(shares)} for chosen {shape(chosen)}")
    require(plus is None or plus.shape == x.shape, "what is added does not fit")
    for tensor in (weights.gate_up, weights.down, weights.gate_up_bias, weights.down_bias, chosen, shares):
        require(tensor is None or tensor.is_contiguous(), "weights of experts, their choice and shares are contiguous")
    for rows in (x, plus):
        require(rows is None or rows.stride(1) == 1, "the last dimension of the rows must be contiguous")


def sequences(block_tables: Tensor, seq_lens: Tensor) -> None:
    indices(block_tables, "block_tables", torch.int32, ndim=2)
    indices(seq_lens, "seq_lens", torch.int32, ndim=1)
    require(len(block_tables) == len(seq_lens), f"{len(block_tables)} block tables for {len(seq_lens)} seq_lens")


def query_starts(starts: Tensor | None, seq_lens: Tensor) -> None:
    require(starts is not None, "prefill needs query_starts")
    assert starts is not None
    indices(starts, "query_starts", torch.int32, ndim=1)
    require(len(starts) == len(seq_lens) + 1, f"{len(starts)} query_starts for {len(seq_lens)} seq_lens")


def store(rows: Tensor, pool: Tensor, slots: Tensor) -> None:
    """rows [T,H,D] go to the slots [T] int64 of pool [P,B,H,D]."""
    cache(pool, "the cache", ndim=4)
    indices(slots, "slots", torch.int64, ndim=1)
    require(rows.shape[1:] == pool.shape[2:], f"rows {shape(rows)} do not fit the cache {shape(pool)}")
    require(len(rows) == len(slots), f"{len(rows)} rows for {len(slots)} slots")
    require(rows.stride(-1) == 1, "the last dimension of the rows must be contiguous")


def shared_keys(k_rope: Tensor | None, k_cache: Tensor, k_scale: Scale) -> None:
    """k_rope [P,B,E] beside k_cache [P,B,HKV,D], both as they are."""
    if k_rope is not None:
        cache(k_rope, "k_rope", ndim=3)
        fits = k_rope.shape[:2] == k_cache.shape[:2] and k_rope.dtype == k_cache.dtype
        require(fits, f"k_rope {shape(k_rope)} of {k_rope.dtype} does not fit k_cache {shape(k_cache)}")
        require(
            not isinstance(k_scale, Tensor) and k_scale == 1.0, "keys with a part that all heads share have no scale"
        )


def cache(pool: Tensor, name: str, ndim: int) -> None:
    require(pool.ndim == ndim, f"{name} has {pool.ndim} dimensions, not {ndim}")
    require(pool.dtype in CACHE_DTYPES, f"{name} is {pool.dtype}, not one of {CACHE_DTYPES}")
    require(pool.stride(-1) == 1, f"the last dimension of {name} must be contiguous")
    fp8(pool.dtype, pool)


def fp8(dtype: torch.dtype, pool: Tensor) -> None:
    """Raises DeviceError where the pool's card does not know the values that it holds."""
    if pool.is_cuda and dtype in FP8_DTYPES and torch.cuda.get_device_capability(pool.device) < FP8_CAPABILITY:
        card = torch.cuda.get_device_name(pool.device)
        raise DeviceError(f"{card} has no fp8 (compute capability 8.9 and newer do): keep the KV cache in bf16 or fp16")


def nucleus(probabilities: Tensor, top_ps: Tensor) -> None:
    """probabilities [n, vocab] and top_ps [n], fp32."""
    fits = probabilities.ndim == 2 and top_ps.shape == probabilities.shape[:1]
    require(fits, f"top_ps {shape(top_ps)} do not fit probabilities {shape(probabilities)}")
    for tensor in (probabilities, top_ps):
        require(tensor.dtype == torch.float32, f"probabilities are fp32, not {tensor.dtype}")
        require(tensor.stride(-1) == 1, "the last dimension of probabilities must be contiguous")


def indices(tensor: Tensor, name: str, dtype: torch.dtype, ndim: int) -> None:
    require(tensor.ndim == ndim and tensor.dtype == dtype, f"{name} must be {ndim}-D {dtype}, not {describe(tensor)}")
    require(tensor.stride(-1) == 1, f"the last dimension of {name} must be contiguous")


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def describe(tensor: Tensor) -> str:
    return f"{tensor.ndim}-D {tensor.dtype}"
