"""What llama-server is started with, by its own flags or by Ollama, and the cells that each stream of a cache gets."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.engines.options import EngineOptions
from kvtool.system.errors import KvtoolError
from kvtool.units import round_up

AUTO_SLOTS = 4  # llama-server without --parallel: four slots that share one cache (tools/server/server.cpp)
DEFAULT_UBATCH_TOKENS = 512
CELL_MULTIPLE = 256  # of n_ctx, n_ctx_seq and the cells of windows (llama-context.cpp, llama-kv-cache-iswa.cpp)
FLASH_ATTENTION = ("auto", "on", "off")
# Ollama runs llama-server since 0.30 (its commit 9db4bdbad). Earlier its own engine kept the windows of all sequences
# in one cache, with a batch's tokens behind them (kvcache/causal.go, since 0.6.3), and before that every token.
LLAMA_SERVER_OLLAMA, WINDOWED_OLLAMA = (0, 30), (0, 6, 3)
OWN_ENGINE_WINDOW_TOKENS = {"gemma4_text": 4096}  # kept for Gemma 4 instead of its window (model/models/gemma4)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppFlags:
    """The flags that decide a cache's size; None where llama-server itself chooses.

    `parallel` is --parallel, `ubatch` --ubatch-size; K and V types may differ. `n_gpu_layers` None offloads all layers,
    and `tensor_split` are the shares of the GPUs.
    """

    parallel: int | None = None
    ubatch: int = DEFAULT_UBATCH_TOKENS
    swa_full: bool = False
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: str = "auto"
    n_gpu_layers: int | None = None
    tensor_split: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("parallel", "ubatch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise KvtoolError(f"--{name} {value} must be at least 1")
        if self.flash_attn not in FLASH_ATTENTION:
            raise KvtoolError(f"--flash-attn {self.flash_attn!r} is not one of {', '.join(FLASH_ATTENTION)}")
        if not self.tensor_split or min(self.tensor_split) < 0 or not sum(self.tensor_split):
            raise KvtoolError("--tensor-split needs a share for every GPU, as 3,1, and one above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start, resolved. Each of `streams` holds `cells` tokens for the sequences that share it.

    `slots` sequences run at once: all in one stream (unified), or each in its own.
    """

    slots: int
    streams: int
    cells: int
    ubatch: int
    swa_full: bool
    one_window_pool: bool = False

    @property
    def context(self) -> int:
        """Tokens that a sequence can have at most."""
        return self.cells // self.slots if self.one_window_pool else self.cells

    def window_cells(self, window: int, kept: int | None = None) -> int:
        """Cells of a stream for layers that see `window` tokens, of which an engine may keep `kept`."""
        if self.swa_full:
            return self.cells
        if self.one_window_pool:
            return self._own_engine_cells(kept or window, window)
        sequences = self.slots if self.streams == 1 else 1
        return round_up(min(self.cells, window * sequences + self.ubatch), CELL_MULTIPLE)

    def _own_engine_cells(self, kept: int, window: int) -> int:
        """Ollama's own engine: a token more where several sequences run, and everything where that is no less."""
        kept = max(kept, window + 1) if self.slots > 1 else kept
        cells = self.cells if kept >= self.context else kept * self.slots + self.ubatch
        return round_up(cells, CELL_MULTIPLE)


def flags_of(options: EngineOptions) -> LlamaCppFlags:
    """The flags of a start; a cache dtype asked for is K's and V's, where they have none of their own. Raises
    KvtoolError.
    """
    types = [options.kv_cache_dtype if kind == AUTO else kind for kind in (options.cache_type_k, options.cache_type_v)]
    key, value = ("f16" if kind == AUTO else kind for kind in types)
    return LlamaCppFlags(
        parallel=options.slots,
        ubatch=DEFAULT_UBATCH_TOKENS if options.ubatch is None else options.ubatch,
        swa_full=not options.windows,
        cache_type_k=key,
        cache_type_v=value,
        flash_attn=options.flash_attn,
        n_gpu_layers=options.n_gpu_layers,
        tensor_split=_shares(options.tensor_split),
    )


def _shares(text: str) -> tuple[float, ...]:
    """`3,1` -> (3.0, 1.0); auto is one GPU."""
    if text == AUTO:
        return (1.0,)
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise KvtoolError(f"--tensor-split {text!r} is not a list of shares: write one a GPU, as 3,1") from None


def llama_cpp_start(flags: LlamaCppFlags, context: int) -> Start:
    """llama-server with -c `context`: four slots over one cache, or as many streams as --parallel says."""
    cells = round_up(context, CELL_MULTIPLE)
    if flags.parallel is None:
        return Start(slots=AUTO_SLOTS, streams=1, cells=cells, ubatch=flags.ubatch, swa_full=flags.swa_full)
    return Start(
        slots=flags.parallel,
        streams=flags.parallel,
        cells=round_up(cells // flags.parallel, CELL_MULTIPLE),
        ubatch=flags.ubatch,
        swa_full=flags.swa_full,
    )


def ollama_start(flags: LlamaCppFlags, context: int, version: tuple[int, ...] | None) -> Start:
    """Ollama gives every one of its sequences (OLLAMA_NUM_PARALLEL, 1 by default) the whole `context`."""
    slots = flags.parallel or 1
    if version is None or version >= LLAMA_SERVER_OLLAMA:
        return Start(
            slots=slots,
            streams=slots,
            cells=round_up(context, CELL_MULTIPLE),
            ubatch=flags.ubatch,
            swa_full=flags.swa_full,
        )
    return Start(
        slots=slots,
        streams=1,
        cells=round_up(slots * context, CELL_MULTIPLE),
        ubatch=flags.ubatch,
        swa_full=flags.swa_full or version < WINDOWED_OLLAMA,
        one_window_pool=True,
    )
