"""vLLM's start-up log, 0.5 to 0.33: every line that tells a number of its memory, a flag, or why it refused.

Texts as in vllm/v1/worker/gpu_worker.py, gpu_model_runner.py, worker/utils.py, core/kv_cache_utils.py and
core/kv_cache_planning.py of 0.33, and in the logs of older versions that tests/verify/logs quotes.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvtool.verify.facts import LogFacts
from kvtool.verify.patterns import collect, facts, pattern, template

PATTERNS = (
    # What it is and how it was started.
    template("vLLM API server version {version:text}", starts=True),
    template("non-default args: {args:items}", starts=True),
    template("args: Namespace{args:items}", starts=True),  # until 0.8
    template("LLM engine (v{version:text}) with config: {config:items}"),
    template("Initializing an LLM engine with config: {config:items}"),
    template("Starting to load model {model:text}"),
    template("Using max model len {max_model_len:flag}"),
    template("Auto-fit max_model_len: reduced from ... to {max_model_len:flag} to fit"),
    template("Chunked prefill is enabled with max_num_batched_tokens={max_num_batched_tokens:flag}"),
    template(
        "in world size {world_size:count} is assigned as DP rank {dp_rank:count}, PP rank {pp_rank:count}",
    ),
    template("world_size={world_size:count} rank="),
    template("Asynchronous scheduling is {async_scheduling:flag}"),
    template("Device capability {capability:flag} not supported"),
    # What is compiled for: its last size is a whole step's.
    pattern("'compile_ranges_endpoints': [", r"endpoints': \[(?:\d+, )*(?P<max_num_batched_tokens_flag>\d+)\]"),
    pattern("GDN prefill kernel", r"Using (?P<delta_net_kernel_flag>[\w/]+) GDN prefill kernel"),
    # What it measured.
    template("Checkpoint size: {checkpoint:gib} GiB"),
    template("Model loading took {weights:gib}"),
    template("Loading model weights took {weights:gib}"),
    template("Available KV cache memory: {kv_pool:gib} GiB"),
    template("the rest of the memory reserved for KV Cache is {kv_pool:gib}"),
    template(" kv_cache_size={kv_pool:gib}"),
    template("reserved {kv_pool:gib} GiB memory for KV Cache as specified by kv_cache_memory_bytes"),
    template("Current kv cache memory in use is {kv_pool:count} bytes"),
    template("Current kv cache memory in use is {kv_pool:gib} GiB"),
    template("Available KV cache memory: {kv_pool:count} bytes"),
    template("PyTorch activation peak memory takes {activation:gib}"),
    template("GiB for weight, {activation:gib} GiB for peak activation"),
    template("GiB for consumed memory (weights + non-torch), {activation:gib} GiB for peak activation"),
    template("non_torch_memory takes {non_torch:gib}"),
    template(" non_torch_memory={non_torch:gib}"),
    template("GiB for peak activation, {non_torch:gib} GiB for non-torch memory"),
    template("Actual usage is {consumed:gib} GiB for consumed memory"),
    template("can use total_gpu_memory ({total_memory:gib}"),
    template("Memory profiling results: total_gpu_memory={total_memory:gib}"),
    template("Memory profiling results: ... peak_torch_memory={peak_torch:gib}"),
    template("Memory profiling results: ... gpu_memory_utilization={gpu_memory_utilization:flag}"),
    template("Free memory on device ...({free_memory:gib}/{total_memory:gib} GiB)"),
    template(
        "Desired GPU memory utilization is ({gpu_memory_utilization:flag}, {requested_memory:gib} GiB)",
    ),
    pattern(
        "Profiling CUDA graph memory",
        r"memory: (?:PIECEWISE=(?P<mixed_graphs_count>\d+) [^,]*)?(?:, )?(?:FULL=(?P<decode_graphs_count>\d+) )?",
    ),
    template("Estimated CUDA graph memory: {graphs_estimate:gib} GiB total"),
    template("GiB (actual), {graphs_estimate:gib} GiB (estimated)"),
    template("Graph capturing finished in ..., took {graphs:gib} GiB"),
    template("and {graphs:gib} GiB for CUDAGraph memory"),
    # What it made of that.
    template("GPU blocks: {num_blocks:count}"),
    template("KV cache size: {tokens:count} tokens"),
    template("Maximum concurrency for {max_model_len:count} tokens per request: {max_concurrency:ratio}x"),
    template("Setting attention block size to {block_size:count} tokens"),
    # Why it would not start.
    template("Failed to load model - not enough GPU memory", refusal="load_oom"),
    template("No available memory for the cache blocks", refusal="no_kv_memory"),
    template(
        "To serve at least one request with the model ...max seq len ({max_model_len:count})", refusal="one_request"
    ),
    template(
        "{one_request:gib} GiB KV cache is needed, which is larger than the available "
        "KV cache memory ({kv_pool:gib} GiB)"
    ),
    template("the estimated maximum model length is {estimated_max_len:count}"),
    template(
        "The model's max seq len ({max_model_len:count}) is larger than the maximum number of tokens that can be "
        "stored in KV cache ({stored_tokens:count})",
        refusal="one_request",
    ),
    template(
        "is less than desired GPU memory utilization ({gpu_memory_utilization:flag}, {requested_memory:gib} GiB)",
        refusal="free_memory",
    ),
    template(
        "max_num_seqs ({max_num_seqs:flag}) exceeds available Mamba cache blocks ({num_blocks:count})",
        refusal="mamba_blocks",
    ),
    template("CUDA out of memory. Tried to allocate", refusal="oom"),
    template("has a total capacity of {total_memory:gib} GiB of which"),
    pattern("memory in use", r"Process \d+ has (?P<other_process_size>[\d.]+ [KMGT]?iB) memory in use"),
    template("Error in memory profiling. Initial free memory", refusal="profiling"),
    template(
        "attention heads ({heads:count}) must be divisible by tensor parallel size ({tensor_parallel_size:flag})",
        refusal="layout",
    ),
    template("World size ({world:count}) is larger than the number of available GPUs ({gpus:count})", refusal="gpus"),
    template(
        "User-specified max_model_len ({max_model_len:flag}) is greater than the derived max_model_len",
        refusal="too_long",
    ),
    template("Engine core initialization failed", refusal="failed"),
)


def read_vllm_log(windows: Iterable[tuple[str, str]]) -> LogFacts | None:
    """What vLLM logged; None where no line is its own."""
    return facts("vllm", collect(windows, PATTERNS), model_flags=("model_tag", "model"))
