"""The flags that start an engine, a row each: how engines spell them, and how kvtool's own command line does.

A new flag is a row here and a field of EngineOptions: command lines are written, logs are read, differences are
explained and `kvtool size` takes its options by these rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from kvtool.sizing.engines.options import EngineOptions

ENGINE_ORDER = ("vllm", "sglang", "tensorrt-llm", "lmdeploy", "llama.cpp", "ollama")
Kind = Literal["count", "size", "fraction", "switch", "name", "dtype"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `field` is its place in EngineOptions; a size is in bytes, a switch is on or off.

    `vllm`, `sglang` and `llama_cpp` (which Ollama runs) are the engines' own spellings, None where an engine has no
    such flag; of a switch they turn it off. `planned` are engines whose plan takes the value all the same. `logged`
    are names in vLLM's logs besides its spelling. `always` is said in a command line even where it is the default
    here, since an engine's own default may differ; `digits` are the decimals of a fraction there. With a `help` the
    flag is an option of its own in `kvtool size --engine`; the others follow from options that `size` has without an
    engine.
    """

    field: str
    kind: Kind
    vllm: str | None = None
    sglang: str | None = None
    llama_cpp: str | None = None
    planned: tuple[str, ...] = ()
    logged: tuple[str, ...] = ()
    always: bool = False
    digits: int | None = None
    help: str | None = None

    @property
    def default(self) -> Any:
        """What EngineOptions takes where nothing is given."""
        return _DEFAULTS[self.field]

    @property
    def engines(self) -> tuple[str, ...]:
        """Those that it means something to."""
        return tuple(name for name in ENGINE_ORDER if self.spelling(name) or name in self.planned)

    @property
    def option(self) -> str:
        """kvtool's own spelling, which is vLLM's where there is one; of a switch it turns it off."""
        if self.kind == "switch" or self.field == "slots":
            return self.vllm or self.sglang or self.llama_cpp or ""
        return f"--{self.field.replace('_', '-')}"

    def spelling(self, engine: str) -> str | None:
        """How `engine` spells it."""
        own = {"vllm": self.vllm, "sglang": self.sglang, "llama.cpp": self.llama_cpp, "ollama": self.llama_cpp}
        return own.get(engine)

    def log_names(self, engine: str) -> tuple[str, ...]:
        """Its names in a log of `engine`; one that begins with disable_ or enforce_ is the opposite of the field."""
        spelling = (self.spelling(engine) or "").removeprefix("--").removeprefix("no-").replace("-", "_")
        return (*([spelling] if spelling else []), *(self.logged if engine == "vllm" else ()))

    def said(self, value: object) -> str:
        """kvtool's option with a value: `--max-num-seqs 8`, `--no-async-scheduling`, `--async-scheduling`."""
        if self.kind != "switch":
            return f"{self.option} {value}"
        return self.option.replace("--no-", "--").replace("--disable-", "--no-disable-") if value else self.option

    def words(self, engine: str, value: object) -> list[str]:
        """What a command line of `engine` says for `value`; nothing where it need not."""
        spelling = self.spelling(engine)
        if spelling is None or value is None or (value == self.default and not self.always):
            return []
        if isinstance(value, bool):
            return [] if value else [spelling]
        if isinstance(value, float):
            return [spelling, f"{value:g}" if self.digits is None else f"{value:.{self.digits}f}"]
        return [spelling, str(value)]


_DEFAULTS = {field.name: field.default for field in fields(EngineOptions)}

# In the order of a command line.
FLAGS = (
    Flag("max_model_len", "count", "--max-model-len", "--context-length", logged=("max_seq_len",)),
    Flag("max_num_seqs", "count", "--max-num-seqs"),
    Flag("max_num_batched_tokens", "count", "--max-num-batched-tokens"),
    Flag("max_running_requests", "count", None, "--max-running-requests", help="Requests that run at a time."),
    Flag(
        "chunked_prefill_size", "count", None, "--chunked-prefill-size", help="Tokens of a prefill that run at a time."
    ),
    Flag("kv_cache_dtype", "dtype", "--kv-cache-dtype", "--kv-cache-dtype", always=True),
    Flag("gpu_memory_utilization", "fraction", "--gpu-memory-utilization", always=True),
    Flag(
        "mem_fraction_static",
        "fraction",
        None,
        "--mem-fraction-static",
        digits=3,
        help="Part of a GPU for weights and caches.",
    ),
    Flag("mamba_ssm_cache_dtype", "dtype", "--mamba-ssm-cache-dtype", "--mamba-ssm-dtype"),
    Flag("block_size", "count", "--block-size", "--page-size"),
    Flag(
        "kv_cache_memory_bytes",
        "size",
        "--kv-cache-memory-bytes",
        planned=("sglang", "tensorrt-llm", "lmdeploy"),
        help="What a GPU has for the cache, as 40GiB.",
    ),
    Flag(
        "free_memory_fraction",
        "fraction",
        planned=("tensorrt-llm", "lmdeploy"),
        help="Part of what is free after the weights: free_gpu_memory_fraction, cache_max_entry_count.",
    ),
    Flag(
        "num_gpu_blocks_override",
        "count",
        "--num-gpu-blocks-override",
        help="Blocks of the engine's pool, whatever its memory.",
    ),
    Flag("max_total_tokens", "count", None, "--max-total-tokens", help="Tokens of its pool, whatever its memory."),
    Flag("async_scheduling", "switch", "--no-async-scheduling", help="Schedule a step while one runs (the default)."),
    Flag(
        "enable_prefix_caching",
        "switch",
        "--no-enable-prefix-caching",
        "--disable-radix-cache",
        help="Keep what prompts have in common (by default on; for hybrids since vLLM 0.26).",
    ),
    Flag(
        "hybrid_kv_cache_manager",
        "switch",
        "--disable-hybrid-kv-cache-manager",
        help="Keep windows as full attention.",
    ),
    Flag(
        "mamba_cache_mode",
        "name",
        "--mamba-cache-mode",
        help="Which recurrent states are kept: auto, none, align or all.",
    ),
    Flag(
        "swa_full_tokens_ratio",
        "fraction",
        None,
        "--swa-full-tokens-ratio",
        help="Tokens of windows to a token of full layers.",
    ),
    Flag(
        "mamba_full_memory_ratio",
        "fraction",
        None,
        "--mamba-full-memory-ratio",
        help="Bytes of states to a byte of tokens.",
    ),
    Flag("max_mamba_cache_size", "count", None, "--max-mamba-cache-size", help="Slots of recurrent state."),
    Flag("cuda_graphs", "switch", "--enforce-eager", help="Run without CUDA graphs."),
    Flag(
        "limit_mm_per_prompt",
        "name",
        "--limit-mm-per-prompt",
        help='Images and videos a prompt may bring, as {"image": 0, "video": 0}.',
    ),
    Flag("num_speculative_tokens", "count", None, "--speculative-num-steps"),
    Flag(
        "slots",
        "count",
        llama_cpp="--parallel",
        help="Sequences at a time (default: 4 that share one cache; Ollama: 1, each with the whole context).",
    ),
    Flag("ubatch", "count", llama_cpp="--ubatch-size", help="Tokens of a physical batch, kept beside windows."),
    Flag("windows", "switch", llama_cpp="--swa-full", help="Keep every token of sliding layers."),
    Flag("cache_type_k", "name", llama_cpp="--cache-type-k", help="Of keys: f16, q8_0, q4_0 ... (auto: as the cache)."),
    Flag("cache_type_v", "name", llama_cpp="--cache-type-v", help="Of values."),
    Flag("flash_attn", "name", llama_cpp="--flash-attn", help="auto, on or off; a quantised V needs it."),
    Flag("n_gpu_layers", "count", llama_cpp="--n-gpu-layers", help="Layers on GPUs, the last ones (default: all)."),
    Flag("tensor_split", "name", llama_cpp="--tensor-split", help="Shares of the GPUs, as 3,1."),
)
BY_FIELD = {flag.field: flag for flag in FLAGS}
