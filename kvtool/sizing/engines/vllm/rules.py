"""What of vLLM's rules differs between releases, as the fields of one record."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.catalog.model import KimiDeltaAttention, Model, RecurrentLayer, ShortConvolution

SORT, TRITON, FLASHINFER = "sort", "triton", "flashinfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondRunner:
    """The models that a release runs with its second model runner: dense and sparse ones by HF's model_type, None for
    all, and whether quantised checkpoints and hybrids are among them.
    """

    dense: tuple[str, ...] | None = ()
    sparse: tuple[str, ...] | None = ()
    quantised: bool = False
    hybrids: bool = False

    def runs(self, model: Model) -> bool:
        """Whether this model is run by it, as far as the model decides."""
        if model.quantisation is not None and not self.quantised:
            return False
        if any(isinstance(layer.cache, RecurrentLayer) for layer in model.layers) and not self.hybrids:
            return False
        named = self.dense if model.moe is None else self.sparse
        return named is None or (model.architecture or "") in named


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmRules:
    """The rules of one release; the values here are those of 0.10. versions.py explains each field."""

    gpu_memory_utilization: float = 0.9
    group_ratio: float = 1.0
    unified_pages: bool = False
    padded_pages: bool = False
    padded_states: bool = False
    in_flight_batches: bool = False
    hybrid_prefix_caching: bool = False
    aligned_states: bool = False
    state_checkpoints: tuple[type, ...] = ()
    delta_net_grid: bool = False
    tokens_follow_concurrency: bool = False
    graphs_subtracted: bool = False
    sampler: str = FLASHINFER
    second_runner: SecondRunner = SecondRunner()
    second_runner_images: bool = False
    second_runner_graphs: bool = False
    huge_cards: bool = False
    draft_lookahead: bool = False
    moe_workspace_kept: bool = False
    graphs_profiled: bool = False
    consumed_measured: bool = False
    small_window_blocks: bool = False
    null_block_held: bool = False
    undrafted_convolutions: tuple[type, ...] = (ShortConvolution, KimiDeltaAttention)
    padded_latent_pages: bool = False
    aligned_latent_blocks: bool = False
    whole_windows: bool = False
    promoted_blocks: bool = False
    promoted_apart: bool = False
    promoted_whole: tuple[str, ...] = ()
    override_checked: bool = False
    value_widths: bool = False
    windows_beside_latent: bool = False
    latent_workspace: bool = False
    flashinfer_rotation: bool = False
