"""Each change of a rule, with the release that made it and where it is to be read in the source of vLLM's wheels; a
number with # is a pull request or an issue of vllm-project/vllm.
"""

from __future__ import annotations

from kvtool.catalog.model import GatedDeltaNet, KimiDeltaAttention, Mamba2, ShortConvolution
from kvtool.sizing.engines.versions import Change
from kvtool.sizing.engines.vllm.rules import FLASHINFER, SORT, TRITON, SecondRunner

_SPARSE = ("deepseek_v2", "qwen2_moe", "granitemoe")


def _change(since: str, rule: str, value: object, what: str, source: str) -> Change:
    return Change(since=since, rule=rule, value=value, what=what, source=source)


_GROUPS = "v1/core/kv_cache_utils.py"
_RUNNER = "config/vllm.py: use_v2_model_runner"
_SPECS = "v1/kv_cache_interface.py"
_ATTENTION = "model_executor/layers/attention/attention.py: get_kv_cache_spec"
_SLIDING, _CHUNKED = "SlidingWindowSpec", "ChunkedLocalAttentionSpec"
_PROMOTE = f"{_GROUPS}: _promote_local_kv_cache_specs"
_STRIDE = "v1/attention/backend.py: indexes_kv_by_block_stride"
_WINDOW_BLOCKS = "model_executor/layers/attention/attention.py: _largest_kernel_block_within"
CHANGES = (
    _change(
        "0.11",
        "sampler",
        SORT,
        "the sampler's dummy run sorts all logits: FlashInfer's sampler has to be asked for",
        "v1/sample/ops/topk_topp_sampler.py",
    ),
    _change(
        "0.11.2",
        "latent_workspace",
        True,
        "128 MiB for FlashInfer's MLA kernels are taken when a start looks through the kernels, whichever it runs",
        "v1/attention/backends/mla/flashinfer_mla.py: g_fi_workspace",
    ),
    _change(
        "0.12",
        "unified_pages",
        True,
        "layers with pages of different sizes get blocks of more tokens instead of a refusal",
        f"{_GROUPS}: unify_kv_cache_spec_page_size",
    ),
    _change(
        "0.12",
        "group_ratio",
        1.25,
        "groups take the larger kind's number of layers below a ratio of 1.25, not always the smaller's",
        f"{_GROUPS}: _get_kv_cache_groups_uniform_page_size",
    ),
    _change(
        "0.13",
        "moe_workspace_kept",
        True,
        "what fused experts work in stays allocated beside the sampler's dummy run",
        "v1/worker/workspace.py",
    ),
    _change(
        "0.14",
        "flashinfer_rotation",
        True,
        "without compilation MLA's YaRN keeps its table of positions in fp32, for FlashInfer's rotation",
        "model_executor/layers/rotary_embedding/deepseek_scaling_rope.py",
    ),
    _change(
        "0.15",
        "aligned_states",
        True,
        "prefix caching of hybrids keeps states at block boundaries (align): 2 a request, and 1 for each drafted token",
        f"{_SPECS}: MambaSpec.max_memory_usage_bytes",
    ),
    _change(
        "0.17",
        "sampler",
        TRITON,
        "top-k and top-p by a Triton kernel: no sorted copies and 64-bit indices any more",
        "v1/sample/ops/topk_topp_triton.py",
    ),
    _change(
        "0.18",
        "group_ratio",
        1.5,
        "groups take the larger kind's number of layers below a ratio of 1.5",
        f"{_GROUPS}: _get_kv_cache_groups_uniform_page_size",
    ),
    _change(
        "0.18",
        "graphs_profiled",
        True,
        "CUDA graphs are captured on trial before the pool is measured, which leaves more outside of torch",
        "v1/worker/gpu_model_runner.py: profile_cudagraph_memory",
    ),
    _change(
        "0.20",
        "graphs_subtracted",
        True,
        "the estimate of CUDA graphs is subtracted from the pool",
        "envs.py: VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS",
    ),
    _change("0.20", "gpu_memory_utilization", 0.92, "--gpu-memory-utilization is 0.92 by default", "config/cache.py"),
    _change(
        "0.21",
        "promoted_whole",
        (_SLIDING,),
        "windows that are kept whole have room for a V of its own width and for the scales of each token and head",
        f"{_GROUPS}: unify_hybrid_kv_cache_specs",
    ),
    _change(
        "0.21",
        "override_checked",
        True,
        "a request must fit into --num-gpu-blocks-override, not into the memory that it replaces",
        f"{_GROUPS}: get_kv_cache_configs",
    ),
    _change(
        "0.21",
        "tokens_follow_concurrency",
        True,
        "the logged size counts a request's blocks of windows as they are: concurrency x length",
        f"#43308; {_GROUPS}: _report_kv_cache_config",
    ),
    _change(
        "0.21",
        "sampler",
        FLASHINFER,
        "FlashInfer samples by default: masked logits and probabilities, no buffer of the Triton kernel",
        "envs.py: VLLM_USE_FLASHINFER_SAMPLER",
    ),
    _change(
        "0.22",
        "second_runner",
        SecondRunner(dense=("qwen3",)),
        "model runner V2 runs dense Qwen3: its profile samples greedily, so that only the logits are held",
        _RUNNER,
    ),
    _change(
        "0.23",
        "second_runner",
        SecondRunner(dense=("qwen3", "llama", "mistral")),
        "model runner V2 runs dense Llama and Mistral too",
        _RUNNER,
    ),
    _change(
        "0.24",
        "second_runner",
        SecondRunner(dense=("qwen3", "llama", "mistral"), sparse=_SPARSE, quantised=True),
        "model runner V2 runs quantised checkpoints, DeepSeek-V2, Qwen2-MoE and Granite-MoE too",
        _RUNNER,
    ),
    _change(
        "0.24",
        "padded_pages",
        True,
        "attention pages that do not divide the largest are padded instead of refused",
        f"{_GROUPS}: unify_kv_cache_spec_page_size",
    ),
    _change("0.24", "padded_latent_pages", True, "so are those of MLA without an indexer", _STRIDE),
    _change(
        "0.24",
        "promoted_apart",
        True,
        "without the hybrid manager windows and full layers are of one type, but no more of one spec",
        f"{_GROUPS}: unify_hybrid_kv_cache_specs",
    ),
    _change(
        "0.25",
        "second_runner",
        SecondRunner(dense=None, sparse=_SPARSE, quantised=True),
        "model runner V2 runs all dense models",
        _RUNNER,
    ),
    _change(
        "0.25",
        "latent_workspace",
        False,
        "FlashInfer's MLA kernels take their 128 MiB where they run",
        "v1/attention/backends/mla/flashinfer_mla.py: _get_workspace_buffer",
    ),
    _change(
        "0.25",
        "small_window_blocks",
        True,
        "sliding layers begin with their kernel's smallest block, 16 tokens, whatever --block-size",
        _WINDOW_BLOCKS,
    ),
    _change(
        "0.26",
        "in_flight_batches",
        True,
        "windows and chunks keep the tokens of every batch in flight, two with async scheduling",
        f"#47728; {_SPECS}: max_in_flight_tokens",
    ),
    _change(
        "0.26",
        "hybrid_prefix_caching",
        True,
        "hybrids cache prefixes by default",
        "config/model.py: is_prefix_caching_supported",
    ),
    _change("0.26", "windows_beside_latent", True, "a draft with windows may stand beside MLA", _ATTENTION),
    _change(
        "0.26",
        "padded_states",
        True,
        "pages of states are padded to the largest page instead of refused",
        f"{_GROUPS}: unify_kv_cache_spec_page_size",
    ),
    _change(
        "0.27",
        "undrafted_convolutions",
        (ShortConvolution,),
        "convolutions of KDA keep the positions of drafted tokens too",
        "model_executor/layers/mamba/mamba_utils.py: kda_state_shape",
    ),
    _change(
        "0.27",
        "aligned_latent_blocks",
        True,
        "blocks of hybrids with MLA are multiples of 128 tokens",
        "platforms/interface.py: _align_hybrid_block_size",
    ),
    _change(
        "0.27",
        "whole_windows",
        True,
        "windows whose pages have none in common with MLA's are kept whole instead of refused",
        f"{_GROUPS}: _try_get_full_allocation_fallback_groups",
    ),
    _change("0.27", "promoted_blocks", True, "windows that are kept whole take the blocks of full layers", _PROMOTE),
    _change(
        "0.27",
        "consumed_measured",
        True,
        "weights and all else that stays are measured as what the card's free memory lost",
        "utils/mem_utils.py: memory_profiling",
    ),
    _change(
        "0.27",
        "second_runner_images",
        True,
        "model runner V2 profiles images and video too",
        "v1/worker/gpu/model_runner.py: profile_run",
    ),
    _change(
        "0.28",
        "promoted_apart",
        False,
        "windows that are kept whole are of one spec with full layers again",
        _PROMOTE,
    ),
    _change(
        "0.28",
        "value_widths",
        True,
        "full layers whose V alone is of another width are no more taken for the first of them",
        f"{_SPECS}: FullAttentionSpec.merge",
    ),
    _change("0.28", "promoted_whole", (_SLIDING, _CHUNKED), "so have chunks", _PROMOTE),
    _change(
        "0.28",
        "huge_cards",
        True,
        "cards of 160 GiB or more take 16,384 batched tokens by default",
        "engine/arg_utils.py: get_batch_defaults",
    ),
    _change(
        "0.28",
        "draft_lookahead",
        True,
        "windows keep the drafted tokens but one beside their own where several MTP modules draft",
        f"{_GROUPS}: extra_retained_tokens",
    ),
    _change(
        "0.29",
        "second_runner",
        SecondRunner(dense=None, sparse=None, quantised=True, hybrids=True),
        "model runner V2 runs all models",
        _RUNNER,
    ),
    _change(
        "0.29",
        "second_runner_graphs",
        True,
        "model runner V2 estimates its CUDA graphs, which are then subtracted from the pool",
        "v1/worker/gpu/model_runner.py: profile_cudagraph_memory",
    ),
    _change(
        "0.29",
        "state_checkpoints",
        (KimiDeltaAttention,),
        "Kimi K3's delta attention can write a state out of a prefill, and keeps one more a request",
        f"{_SPECS}: num_prefill_checkpoint_blocks",
    ),
    _change(
        "0.29",
        "null_block_held",
        True,
        "the block that the pool holds back is no memory for a request, nor for a length that is fitted",
        f"{_GROUPS}: get_kv_cache_configs",
    ),
    _change(
        "0.29",
        "undrafted_convolutions",
        (),
        "short convolutions keep the positions of drafted tokens too",
        "model_executor/layers/mamba/mamba_utils.py: short_conv_state_shape",
    ),
    _change(
        "0.29",
        "padded_latent_pages",
        False,
        "pages of MLA are padded no more: their kernels read whole rows",
        f"{_GROUPS}: unify_kv_cache_spec_page_size",
    ),
    _change(
        "0.30",
        "small_window_blocks",
        False,
        "sliding layers take --block-size again, where their kernel runs such blocks",
        _WINDOW_BLOCKS,
    ),
    _change(
        "0.32",
        "state_checkpoints",
        (KimiDeltaAttention, Mamba2),
        "Mamba-2 layers can write a state out of a prefill too",
        "model_executor/layers/mamba/mamba_mixer2.py: get_kv_cache_spec",
    ),
    _change(
        "0.33",
        "state_checkpoints",
        (KimiDeltaAttention, Mamba2, GatedDeltaNet),
        "gated delta nets that FlashInfer computes can write a state out of a prefill too",
        f"{_SPECS}: num_prefill_checkpoint_blocks",
    ),
    _change(
        "0.33",
        "delta_net_grid",
        True,
        "blocks of gated delta nets that FlashInfer computes are multiples of 64 tokens",
        f"{_SPECS}: prefill_checkpoint_alignment",
    ),
)
