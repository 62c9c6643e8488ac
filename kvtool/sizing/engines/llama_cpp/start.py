"""What llama-server is started with, by its own flags or by Ollama, and the cells that each stream of a cache gets."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.errors import KvtoolError
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
