"""Torch's peak in vLLM's profile run, tensor by tensor: a forward pass of the largest batch, then the sampler's run.

Read in v1/worker/gpu_model_runner.py (profile_run, _dummy_run, _dummy_sampler_run), v1/worker/gpu/model_runner.py,
v1/sample/ and model_executor/layers/; checked against the starts of examples/accuracy/starts.csv.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import FullAttention, GatedDeltaNet, LatentAttention, Mamba2, Model
from kvtool.sizing.dtypes import FLOAT_BYTES, canonical_dtype
from kvtool.sizing.engines.vllm.images import Tower, held_bytes, tower_of, tower_peak_bytes
from kvtool.sizing.engines.vllm.rules import SORT, TRITON, VllmRules
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.params import mlp_matrices
from kvtool.units import KIB, MIB, ceil_div

CAPABILITY_OF_LARGE_WORKSPACE = 90
CUBLAS_WORKSPACE_BYTES, SMALL_CUBLAS_WORKSPACE_BYTES = 32 * MIB, 8 * MIB + 128 * KIB
# Bytes of the sampler for each logit, beside the logits in the model's dtype and a copy in fp32.
# torch.sort of rows: values 4, indices 8; for the segments 64-bit indices again 8, and cub's own copies 12.
_SORTED, _SAMPLED = 4 + 8 + 8 + 12, 8  # probabilities and exponential noise, or masked logits and probabilities
_REJECTED_LOGITS = 3  # of a draft: logits of two tokens a sequence, and those of the drafted ones again
_MAX_CONTEXT_WORKSPACE_TOKENS = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One rank's profile run: a batch of `tokens`, `sequences` of which are sampled. `compute_units` are the card's SMs
    (None: not known), `drafted` whether a draft model runs, `images` the encoder that is profiled, where there is one.
    """

    model: Model
    rules: VllmRules
    parallel: Parallel
    tokens: int
    sequences: int
    max_model_len: int
    capability: int | None
    compute_units: int | None
    block_size: int = 16
    drafted: bool = False
    images: Tower | None = None

    @property
    def element_bytes(self) -> int:
        """Of an activation: the model's dtype."""
        return FLOAT_BYTES.get(canonical_dtype(self.model.dtype or "bf16"), 2)

    @property
    def second_runner(self) -> bool:
        return self.rules.second_runner.runs(self.model)

    @property
    def row_bytes(self) -> int:
        """A hidden state of every token of the batch."""
        return self.tokens * self.model.hidden_size * self.element_bytes


def profile(
    model: Model,
    gpu: Gpu,
    parallel: Parallel,
    *,
    rules: VllmRules,
    tokens: int,
    sequences: int,
    max_model_len: int,
    capability: int | None,
    drafted: bool = False,
    images: bool = True,
) -> Profile:
    """The profile run of a start on a card; `images` False is --limit-mm-per-prompt of 0."""
    return Profile(
        model=model,
        rules=rules,
        parallel=parallel,
        tokens=tokens,
        sequences=min(sequences, tokens),
        max_model_len=max_model_len,
        capability=capability,
        compute_units=gpu.compute_units,
        drafted=drafted,
        images=tower_of(model) if images else None,
    )


def activation_bytes(run: Profile, *, last_stage: bool = True) -> int:
    """The largest of what is held at once: by the encoder of images, by the forward pass, by the sampler."""
    kept = _kept_bytes(run)
    peaks = [forward_bytes(run) + kept]
    if last_stage:
        peaks.append(sampler_bytes(run) + kept)
    if _profiles_images(run) and run.images is not None:
        peaks.append(tower_peak_bytes(run.images, run.tokens, run.element_bytes))
    return max(peaks) + _cublas_bytes(run)


def sampler_bytes(run: Profile) -> int:
    """Beside the batch's hidden states: those that are sampled, twice, and for each logit the tensors of the sampler.
    The second runner samples its dummy batch greedily, from the logits alone.
    """
    logits = run.sequences * (run.model.vocab_size or 0)
    sampled = run.row_bytes + 2 * run.sequences * run.model.hidden_size * run.element_bytes
    if run.second_runner:
        return sampled + logits * run.element_bytes
    copies = _SORTED if run.rules.sampler == SORT else _SAMPLED
    held = run.element_bytes * (1 + _REJECTED_LOGITS) if run.drafted else run.element_bytes
    return sampled + logits * (held + 4 + copies) + _triton_buffer_bytes(run)


def forward_bytes(run: Profile) -> int:
    """The widest piece of a layer between two attentions: what attention put out, the residual before and after, the
    normalised input, and the MLP's two inner tensors.
    """
    tokens, size = run.tokens, run.element_bytes
    outer = 3 * run.row_bytes + tokens * _attention_width(run) * size
    inner = tokens * (_mlp_width(run) + _shared_experts_width(run)) * size
    if run.model.moe is not None and not run.rules.moe_workspace_kept:
        inner += moe_workspace_bytes(run)
    return max(outer + inner, _attention_bytes(run), _recurrent_bytes(run))


def moe_workspace_bytes(run: Profile) -> int:
    """Fused experts: a row for each token and expert chosen of the inner or outer width, and one of both inner halves
    (TritonExperts.workspace_shapes).
    """
    moe = run.model.moe
    if moe is None:
        return 0
    width = ceil_div(moe.intermediate_size, 1 if run.parallel.ep > 1 else run.parallel.tp)
    outer = moe.hidden_size or run.model.hidden_size
    rows = run.tokens * moe.experts_per_token
    return rows * (max(width, outer) + max(2 * width, outer)) * run.element_bytes


def _kept_bytes(run: Profile) -> int:
    """What stays beside forward pass and sampler: the experts' workspace, images and what they became, and on pipeline
    stages the hidden state and residual that are handed over.
    """
    kept = moe_workspace_bytes(run) if run.rules.moe_workspace_kept else 0
    if run.parallel.pp > 1:
        kept += 2 * run.row_bytes
    if _profiles_images(run) and run.images is not None:
        kept += held_bytes(run.images, run.tokens, run.model.hidden_size, run.element_bytes)
    return kept


def _profiles_images(run: Profile) -> bool:
    return not run.second_runner or run.rules.second_runner_images


def _cublas_bytes(run: Profile) -> int:
    """The workspace that torch takes for cuBLAS (CUDABlas: 32 MiB from Hopper on, about 8 before)."""
    large = run.capability is not None and run.capability >= CAPABILITY_OF_LARGE_WORKSPACE
    return CUBLAS_WORKSPACE_BYTES if large else SMALL_CUBLAS_WORKSPACE_BYTES


def _triton_buffer_bytes(run: Profile) -> int:
    """A row of fp32 logits for each program of the top-k kernel: one an SM, at most one a sequence."""
    if run.rules.sampler != TRITON or run.sequences < 8:
        return 0
    programs = min(run.compute_units or 128, run.sequences)
    return programs * (run.model.vocab_size or 0) * 4


def _attention_width(run: Profile) -> int:
    """Elements a token of attention's output on one rank."""
    widths = [0]
    for cache in {layer.cache for layer in run.model.layers}:
        if isinstance(cache, FullAttention):
            widths.append(run.model.num_heads * cache.v_head_dim)
        if isinstance(cache, LatentAttention):
            widths.append(run.model.num_heads * (cache.v_head_dim or cache.kv_lora_rank))
    return ceil_div(max(widths), run.parallel.attention_tp)


def _mlp_width(run: Profile) -> int:
    """Inner elements a token of a dense MLP on one rank: both halves of a gated one and their product. 0 where all
    layers have experts.
    """
    model = run.model
    if model.moe is not None and model.moe.first_dense_layers == 0 and model.moe.layer_step == 1:
        return 0
    width = model.intermediate_size or 4 * model.hidden_size
    return mlp_matrices(model) * ceil_div(width, run.parallel.tp)


def _shared_experts_width(run: Profile) -> int:
    moe = run.model.moe
    return 0 if moe is None else 3 * ceil_div(moe.shared_intermediate_size, run.parallel.tp)


def _attention_bytes(run: Profile) -> int:
    """MLA sets aside what its keys and values of cached context would expand to (MLAAttention.forward_impl), beside
    queries, output and residuals.
    """
    caches = [layer.cache for layer in run.model.layers if isinstance(layer.cache, LatentAttention)]
    if not caches or any(layer.indexer for layer in run.model.layers):
        return 0
    cache, heads = caches[0], ceil_div(run.model.num_heads, run.parallel.attention_tp)
    wanted = max(8 * run.max_model_len, 4 * run.sequences * run.block_size)
    workspace = max(min(wanted, _MAX_CONTEXT_WORKSPACE_TOKENS), run.sequences * run.block_size)
    expanded = workspace * heads * ((cache.qk_nope_head_dim or 0) + (cache.v_head_dim or 0))
    queries = run.tokens * heads * ((cache.qk_nope_head_dim or 0) + cache.qk_rope_head_dim + (cache.v_head_dim or 0))
    return (expanded + queries) * run.element_bytes + 2 * run.row_bytes


def _recurrent_bytes(run: Profile) -> int:
    """Recurrent layers: their projections before and after the convolution, the output and its gate, and residuals."""
    widths = [0]
    for cache in {layer.cache for layer in run.model.layers}:
        if isinstance(cache, GatedDeltaNet):
            keys, values = cache.key_heads * cache.key_head_dim, cache.value_heads * cache.value_head_dim
            widths.append(2 * (2 * keys + values) + 3 * values)
        if isinstance(cache, Mamba2):
            inner = cache.heads * cache.head_dim
            widths.append(2 * (inner + 2 * cache.groups * cache.state_dim) + 3 * inner)
    inner_bytes = run.tokens * ceil_div(max(widths), run.parallel.attention_tp) * run.element_bytes
    return inner_bytes + 3 * run.row_bytes if max(widths) else 0
