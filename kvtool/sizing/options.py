"""What to size: every combination of contexts, batch sizes and cache dtypes, on one layout and maybe one card."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.headers import CheckpointHeader
from kvtool.catalog.model import Model
from kvtool.results import Calibration
from kvtool.sizing.drafts import Draft, DraftRequest, draft_of
from kvtool.sizing.dtypes import AUTO, FLOAT_BYTES, canonical_dtype
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.questions.lengths import Lengths
from kvtool.sizing.questions.tiers import Places
from kvtool.system.errors import KvtoolError
from kvtool.units import MAX_LENGTH_TOKENS

DEFAULT_CONTEXTS = (4096, 32768)
DEFAULT_BLOCK_SIZE = 16
MAX_COUNT = 1 << 24
MAX_DRAFTED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOptions:
    """The options of `kvtool size`, checked. No `contexts` means 4k, 32k and the model's own maximum; `state_dtype` is
    --mamba-ssm-cache-dtype, `index_dtype` how indexer keys are stored; `num_speculative_tokens` > 0 drafts, with the
    model's own layers or as `draft` says; `checkpoint` holds the headers of the (one) model's weight files where there
    are any; `places` are where else the cache could live, `lengths` how long requests are; `engine` is a start of an
    engine whose plan each row tells, with the cache dtype of the row. No `gpu_memory_utilization` is the engine's.
    """

    contexts: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = (1,)
    kv_cache_dtypes: tuple[str, ...] = (AUTO,)
    block_size: int = DEFAULT_BLOCK_SIZE
    parallel: Parallel = field(default_factory=Parallel)
    gpu: Gpu | None = None
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    shared_prefix: int = 0
    weight_dtype: str = AUTO
    state_dtype: str = AUTO
    index_dtype: str = AUTO
    num_speculative_tokens: int = 0
    draft: DraftRequest | None = None
    checkpoint: CheckpointHeader | None = None
    engine: EngineOptions | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    calibration: Calibration | None = None
    places: Places | None = None
    lengths: Lengths | None = None

    def __post_init__(self) -> None:
        for context in self.contexts:
            _check_range("context", context, MAX_LENGTH_TOKENS)
        for batch_size in self.batch_sizes:
            _check_range("batch size", batch_size, MAX_COUNT)
        _check_range("block size", self.block_size, MAX_COUNT)
        if not 0 <= self.num_speculative_tokens <= MAX_DRAFTED:
            raise KvtoolError(f"num speculative tokens {self.num_speculative_tokens} must be from 0 to {MAX_DRAFTED}")
        for flag in ("max_num_batched_tokens", "max_num_seqs"):
            if (value := getattr(self, flag)) is not None:
                _check_range(f"--{flag.replace('_', '-')}", value, MAX_COUNT)
        self._check_card()
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise KvtoolError(f"gpu memory utilization {self.gpu_memory_utilization} must be above 0 and at most 1")
        if self.shared_prefix < 0:
            raise KvtoolError(f"shared prefix {self.shared_prefix} must not be negative")
        if self.contexts and self.shared_prefix > min(self.contexts):
            raise KvtoolError(f"shared prefix {self.shared_prefix} is longer than the context {min(self.contexts)}")
        if self.max_model_len is not None and self.max_model_len < max(self.contexts, default=self.shared_prefix):
            longest = max(self.contexts, default=self.shared_prefix)
            raise KvtoolError(f"--max-model-len {self.max_model_len} is shorter than {longest} tokens asked for")

    def _check_card(self) -> None:
        """What only a card's memory can answer needs a card."""
        asked = {"--calibration": self.calibration, "--lengths": self.lengths}
        missing = [flag for flag, value in asked.items() if value is not None and self.gpu is None]
        if missing:
            raise KvtoolError(f"{missing[0]} is about the memory of a card: name it with --gpu")
        if self.places is not None and self.gpu is None and not self.places.given:
            raise KvtoolError("--tiers compares with a card's memory: name it with --gpu, or give --dram or --nvme")

    def draft_of(self, model: Model) -> Draft | None:
        """The draft of `model` that was asked for; None where nothing is drafted. Raises KvtoolError."""
        if not self.num_speculative_tokens:
            return None
        return draft_of(model, self.draft or DraftRequest(tokens=self.num_speculative_tokens))

    def started_with(self, **flags: Any) -> SizeOptions:
        """The options with flags that a size and its engine's start have in common."""
        engine = None if self.engine is None else replace(self.engine, **flags)
        return replace(self, engine=engine, **flags)

    @property
    def dtype(self) -> str:
        """What an engine computes in: the dtype of the weights asked for, where that is one to compute in."""
        name = canonical_dtype(self.weight_dtype)
        return name if name in FLOAT_BYTES else AUTO

    def max_context(self, model: Model) -> int | None:
        """The longest sequence that may be: --max-model-len, else what the model was made for, else no limit known."""
        return self.max_model_len or model.max_position_embeddings

    def contexts_of(self, model: Model) -> tuple[int, ...]:
        """The contexts asked for, or the default ones that the model and the shared prefix allow."""
        if self.contexts:
            return self.contexts
        limit = self.max_context(model)
        usual = {tokens for tokens in DEFAULT_CONTEXTS if limit is None or tokens < limit}
        contexts = sorted(usual | ({limit} if limit else set()))
        return tuple(tokens for tokens in contexts if tokens >= self.shared_prefix) or (self.shared_prefix,)


def _check_range(what: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise KvtoolError(f"{what} {value} must be from 1 to {largest}")
