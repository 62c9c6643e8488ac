"""How the GPUs of a node share a model, and what that costs: bytes of collectives, copies that are read, ring steps.

A collective takes `alpha_s`, and the time of its bytes over a GPU's link (the alpha-beta model).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.replay.saved import PrefillFloor, prefill_floor
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import state_format
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.speed.exchange import COLLECTIVE_S, Link
from kvtool.sizing.speed.traffic import attention_flops
from kvtool.sizing.usage import gpu_cache
from kvtool.sizing.weights import Weights, weigh
from kvtool.system.errors import KvtoolError

ACTIVATION_BYTES = 2  # of an element, in bf16
SHARED_A_LAYER = 2  # collectives of a dcp group: queries are gathered, outputs scattered
FAR, NEAR = 131_072, 65_536  # contexts between which windows have ended to grow


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Degrees of a node of `gpus`: `dp` replicas of the attention, each prefilling a request's tokens on `cp` rings of
    `tp` ranks that split the heads; the rest of the model is split over all. A decode has its replica's tp x cp ranks
    for the heads, and `dcp` of them share out the tokens.
    """

    gpus: int = 8
    cp: int = 1
    dp: int = 1
    dcp: int = 1

    def __post_init__(self) -> None:
        for name in ("cp", "dp", "dcp"):
            if getattr(self, name) < 1:
                raise KvtoolError(f"--cluster {name}={getattr(self, name)} must be 1 or more")
        if self.gpus % (self.cp * self.dp):
            raise KvtoolError(f"--cluster cp={self.cp} x dp={self.dp} does not divide the {self.gpus} GPUs of a node")

    @property
    def tp(self) -> int:
        """Ranks that split the heads of a prefill."""
        return self.gpus // (self.cp * self.dp)

    @property
    def decode(self) -> Parallel:
        """Of the decode step, in sizing's terms."""
        return Parallel(tp=self.gpus, dp=self.dp, dcp=self.dcp, dp_attention=self.dp > 1)


def all_reduce_bytes(num_bytes: float, ranks: int) -> float:
    """That each rank sends so that all have the sum: a ring's reduce-scatter and all-gather."""
    return 2 * (ranks - 1) / ranks * num_bytes


def pass_kv_bytes(new: int, cached: int, token_bytes: float, ranks: int) -> float:
    """That a rank sends in one step of a ring that passes K and V on, of `token_bytes` a token (arXiv 2411.01783)."""
    return (new + cached) / ranks * token_bytes


def pass_q_bytes(new: int, query_bytes: float, ranks: int) -> float:
    """That a rank sends in one step of a ring that passes queries on."""
    return new / ranks * query_bytes


def kv_is_smaller(new: int, cached: int, kv_heads: int, num_heads: int) -> bool:
    """Whether K and V of all tokens are no more than the queries of the new ones: from this part of new tokens on
    passing K and V is the better ring.
    """
    return new * num_heads >= 2 * kv_heads * (new + cached)


@dataclass(frozen=True, slots=True)
class PrefillNode:
    """`floor` is that of all GPUs together. `lanes` requests are computed at a time, each at its part of the rate."""

    model: Model
    layout: Layout
    floor: PrefillFloor
    token_bytes: float
    link: Link | None

    @property
    def lanes(self) -> int:
        return self.layout.dp

    def prefill_s(self, length: int, cached: int) -> float:
        """Seconds of a request in its lane."""
        own = self.floor.slower(self.lanes) if self.lanes > 1 else self.floor
        return own.prefill_s(length, cached) + self.collective_s(length - cached) + self.ring_s(length - cached, cached)

    def tokens_in(self, seconds: float) -> float:
        """Tokens that the node prefills in that time, without attention."""
        return seconds / self.floor.compute_s(0, 1)

    def collective_s(self, new: int) -> float:
        """All-reduces of activations: behind attention over tp ranks, behind the rest over those of all replicas."""
        if self.link is None:
            return 0.0
        layout = self.layout
        num_bytes = new / layout.cp * self.model.hidden_size * ACTIVATION_BYTES
        groups = [ranks for ranks in (layout.tp, layout.tp * layout.dp) if ranks > 1]
        sent = sum(all_reduce_bytes(num_bytes, ranks) for ranks in groups)
        return self.model.num_layers * self.link.takes_s(sent, len(groups))

    def ring_s(self, new: int, cached: int) -> float:
        """What the better of the two rings does not hide behind the attention of its steps."""
        if self.layout.cp == 1 or self.link is None:
            return 0.0
        ranks, layers = self.layout.cp, self.model.num_layers
        attention = attention_flops(self.model, new_tokens=new, cached_tokens=cached)
        step_s = attention / self.floor.flops_per_s * self.lanes / layers / ranks
        query_bytes = self.model.hidden_size * ACTIVATION_BYTES / self.layout.tp
        query_step = pass_q_bytes(new, query_bytes, ranks)
        with_kv = self.link.takes_s(pass_kv_bytes(new, cached, self.token_bytes / layers / self.layout.tp, ranks))
        with_q = self.link.takes_s(query_step)
        back_s = self.link.takes_s(query_step * (ranks - 1) / ranks)  # the partial outputs, all to all
        steps = ranks - 1
        return layers * min(steps * max(0.0, with_kv - step_s), steps * max(0.0, with_q - step_s) + back_s)


@dataclass(frozen=True, slots=True)
class DecodeNode:
    """A step reads the weights of a rank, `rank_bytes` of its cache for each token that its replica holds, and sends
    what the collectives take.
    """

    model: Model
    layout: Layout
    weights: Weights
    rank_bytes: float
    bytes_per_s: float
    link: Link | None

    def step_s(self, requests: int, tokens: int) -> float:
        """Of so many requests with so many tokens of context together."""
        read = self.weights.read_bytes_per_step(requests, self.layout.decode)
        if read is None:
            read = (self.weights.stored_bytes or 0) // self.layout.gpus
        cache = tokens / self.layout.dp * self.rank_bytes
        return (read + cache) / self.bytes_per_s + self.collective_s(requests)

    def collective_s(self, requests: int) -> float:
        """All-reduces as in a prefill, and what the ranks of a dcp group gather (queries) and scatter (outputs)."""
        if self.link is None:
            return 0.0
        layout, own = self.layout, requests / self.layout.dp
        num_bytes = own * self.model.hidden_size * ACTIVATION_BYTES
        groups = [ranks for ranks in (layout.tp * layout.cp, layout.gpus) if ranks > 1]
        sent, times = sum(all_reduce_bytes(num_bytes, ranks) for ranks in groups), len(groups)
        if layout.dcp > 1:
            shard = num_bytes / (layout.tp * layout.cp)
            sent += SHARED_A_LAYER * (layout.dcp - 1) * shard
            times += SHARED_A_LAYER
        return self.model.num_layers * self.link.takes_s(sent, times)


def prefill_node(
    model: Model, gpu: Gpu, layout: Layout, token_bytes: float, tflops: float | None, alpha_s: float = COLLECTIVE_S
) -> PrefillNode:
    """Raises KvtoolError for a card without figures."""
    floor = prefill_floor(model, gpu, layout.gpus, tflops)
    return PrefillNode(model, layout, floor, token_bytes, _link(gpu, alpha_s))


def decode_node(
    model: Model, gpu: Gpu, layout: Layout, kv_cache_dtype: str, alpha_s: float = COLLECTIVE_S
) -> DecodeNode:
    """Raises KvtoolError for a card without figures, and where the model cannot be laid out so."""
    if gpu.memory_bandwidth_gbps is None:
        raise KvtoolError(f"{gpu.name} has no known bandwidth: no decode steps follow from it")
    cache = gpu_cache(
        model,
        parse_cache_format(kv_cache_dtype, model.dtype),
        parallel=layout.decode,
        block_size=1,
        state=state_format(model),
    )
    far, near = (cache.read_bytes_per_step(tokens=tokens, batch_size=1) for tokens in (FAR, NEAR))
    rank_bytes = (far - near) / (FAR - NEAR)
    return DecodeNode(model, layout, weigh(model), rank_bytes, gpu.memory_bandwidth_gbps * 1e9, _link(gpu, alpha_s))


def _link(gpu: Gpu, alpha_s: float) -> Link | None:
    return None if gpu.link_gbps is None else Link(gpu.link_gbps * 1e9, alpha_s)
