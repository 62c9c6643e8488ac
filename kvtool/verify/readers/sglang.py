"""SGLang's start-up log, 0.2 to 0.5: every line that tells a number of its memory, a flag, or why it refused.

Texts as in sglang/srt/model_executor/model_runner.py, mem_cache/memory_pool.py, mem_cache/kv_cache_configurator.py,
model_executor/pool_configurator.py and managers/scheduler.py of 0.5.23. Its "GB" are GiB.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvtool.verify.facts import LogFacts
from kvtool.verify.patterns import collect, facts, template

PATTERNS = (
    # What it is and how it was started.
    template("server_args=ServerArgs{args:items}", starts=True),
    template("max_total_num_tokens= ... max_running_requests={max_running_requests:flag}"),
    template("max_total_num_tokens= ... context_len={context_length:flag}"),
    template("Use {attention_backend:flag} backend by default"),
    template("Use {attention_backend:flag} attention backend by default"),
    template("changing page_size ...to {page_size:flag}"),
    template("Using KV cache dtype: {allocated_dtype:flag}"),
    template("KV Cache is allocated. dtype: {allocated_dtype:flag}, "),
    # What it measured. A draft model repeats these lines after the target's.
    template("Load weight begin. avail mem={free_before_load:gib} GB"),
    template("Load weight end. ... avail mem={free_after_load:gib} GB, mem usage={weights:gib} GB"),
    template("Memory pool end. avail mem={free_after_pools:gib} GB"),
    template("Capture cuda graph end. ...mem usage={graphs:gib} GB"),
    template(" CUDA graph end. ...mem usage={graphs:gib} GB"),
    # What it made of that.
    template("full_layer_tokens={full_tokens:count}, swa_layer_tokens={swa_tokens:count}"),
    template(
        "KV Cache is allocated. ...#tokens: {pool_tokens:count}, K size: {k_size:gib} GB, V size: {v_size:gib} GB"
    ),
    template("KV Cache is allocated. ...#tokens: {latent_tokens:count}, KV size: {kv_size:gib} GB"),
    template("Mamba Cache is allocated. ...max_mamba_cache_size: {state_slots:count}, "),
    template(" conv_state size: {conv_state:gib}"),
    template(" ssm_state size: {ssm_state:gib}"),
    template("max_total_num_tokens={tokens:count}, "),
    # Why it would not start.
    template("Not enough memory. Please try to increase --mem-fraction-static", refusal="no_kv_memory"),
    template("Current value: mem_fraction_static={mem_fraction_static:flag}"),
    template("Loaded weights leave no GPU memory for the KV cache under", refusal="no_kv_memory"),
    template("for the KV cache under --mem-fraction-static={mem_fraction_static:flag}"),
    template("Not enough GPU memory for hybrid (mamba/linear-attention) state cache", refusal="mamba_blocks"),
    template("The memory capacity is unbalanced. Some GPUs may be occupied by other processes", refusal="unbalanced"),
    template("CUDA out of memory. Tried to allocate", refusal="oom"),
)


def read_sglang_log(windows: Iterable[tuple[str, str]]) -> LogFacts | None:
    """What SGLang logged; None where no line is its own."""
    return facts("sglang", collect(windows, PATTERNS), model_flags=("model_path",))
