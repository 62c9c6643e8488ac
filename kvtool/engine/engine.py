"""Requests in, tokens out: schedule, run, postprocess. Knows nothing of tokenizers, benchmarks or reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count

import torch

from kvtool.cache.manager import CacheManager
from kvtool.catalog.model import Model, SlidingAttention
from kvtool.engine.batch import build_batch
from kvtool.engine.config import (
    EngineConfig,
    available_bytes,
    default_threads,
    resolve_backend,
    resolve_device,
    resolve_dtype,
    truncated,
)
from kvtool.engine.decoder.packed import packs_on
from kvtool.engine.decoder.transformer import Transformer, runnable_decoder
from kvtool.engine.device import device_errors
from kvtool.engine.pool import KvPool, cache_dtype, pool_specs
from kvtool.engine.sampler import sample
from kvtool.engine.scheduler import Scheduler, SchedulerLimits, Work
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.engine.weights.load import weight_source
from kvtool.errors import DeviceError, KvtoolError
from kvtool.kernels import load_kernels
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.params import count_params
from kvtool.units import ceil_div, format_bytes

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LoadedModel:
    """A decoder on its device, with the specs of its cache. Engines with pools of different sizes can share it."""

    def __init__(self, model: Model, config: EngineConfig, *, max_positions: int) -> None:
        runnable_decoder(model)
        self.model = truncated(model, config.num_layers)
        self.num_layers_of = model.num_layers
        self.config = config
        self.device = resolve_device(config.device)
        torch.set_num_threads(config.threads or default_threads(torch.get_num_threads()))
        self.dtype = resolve_dtype(config.dtype, model, self.device)
        self.cache_format = parse_cache_format(
            self.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype, self.dtype
        )
        cache_dtype(self.cache_format.name)
        self.backend = resolve_backend(config.backend, self.device)
        self.kernels = load_kernels(self.backend)
        self.specs = pool_specs(layer_specs(self.model, self.cache_format))
        self.max_positions = max_positions
        self._require_room_for_weights()
        self.require_room(ceil_div(max_positions, config.block_size))
        self.weights = weight_source(self.model, config, TORCH_DTYPES[self.dtype], self.device)
        with device_errors(f"loading {model.id}"):
            self.transformer = Transformer(
                self.model,
                self.weights,
                max_positions=max_positions,
                dtype=TORCH_DTYPES[self.dtype],
                device=self.device,
            )

    @property
    def vocab_size(self) -> int:
        assert self.model.vocab_size is not None  # runnable_decoder has seen to it
        return self.model.vocab_size

    @property
    def num_threads(self) -> int:
        """Threads that torch computes with on the CPU."""
        return torch.get_num_threads()

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, from the specs."""
        return sum(spec.page_bytes(self.config.block_size) for spec in self.specs)

    def _require_room_for_weights(self) -> None:
        """Raises DeviceError where loading would exhaust the device's memory; unknown sizes are left to be tried."""
        params = count_params(self.model)
        if params is None:
            return
        needed = params.total * FLOAT_BYTES[self.dtype] * (2 if packs_on(self.device, TORCH_DTYPES[self.dtype]) else 1)
        available = available_bytes(self.device)
        if needed > available:
            outside = params.embedding + params.head
            layers = int(self.model.num_layers * max(0.0, available * params.total / needed - outside) / params.total)
            raise DeviceError(
                f"{self.model.id} takes {format_bytes(needed)} to run here, but {self.device} has "
                f"{format_bytes(available)} free: run fewer layers, as --num-layers {max(1, layers)}"
            )

    def require_room(self, num_pages: int) -> None:
        """Raises KvtoolError for a pool without pages, DeviceError when the device has no memory for that many."""
        if num_pages < 1:
            raise KvtoolError(f"a pool of {num_pages} pages holds nothing: at least 1 is needed")
        needed, available = num_pages * self.page_bytes, available_bytes(self.device)
        if needed > available:
            raise DeviceError(
                f"a pool of {num_pages:,} pages needs {format_bytes(needed)}, but {self.device} has "
                f"{format_bytes(available)} free: ask for fewer or shorter requests"
            )

    def assumptions(self) -> list[str]:
        """What was not read or measured, in words."""
        found = []
        decoder = runnable_decoder(self.model)
        if self.weights.even_routing:
            found.append(f"weights are random (seed {self.config.seed}): the tokens mean nothing, the work is the same")
            if self.model.moe is not None:
                found.append("experts are drawn evenly, because a router of random weights has learned nothing")
            if not decoder.exact:
                rotary = decoder.position_offset is None
                unread = "RoPE theta and norm epsilon are the defaults" if rotary else "norm epsilon is the default"
                found.append(f"{unread} of the {decoder.family} family: no effect on time")
        if any(isinstance(layer.cache, SlidingAttention) for layer in self.model.layers):
            found.append("pages behind a sliding window stay allocated: the pool holds sliding layers as full ones")
        if self.model.num_layers != self.num_layers_of:
            found.append(f"only the first {self.model.num_layers} of {self.num_layers_of} layers ran (--num-layers)")
        return found


class Engine:
    """One block pool and the requests that share it. `step` is the whole system; `clock` gives seconds."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_pages: int,
        config: EngineConfig | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`config` may differ from the one the model was loaded with in its limits and in prefix caching."""
        config = config or loaded.config
        loaded.require_room(num_pages)
        self.loaded = loaded
        self.clock = clock
        self.cache = CacheManager(num_pages, config.block_size, config.prefix_caching)
        self.scheduler = Scheduler(
            self.cache,
            SchedulerLimits(
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                prefill_first=config.prefill_first,
            ),
        )
        with device_errors("allocating the block pool"):
            self.pool = KvPool(loaded.specs, num_pages, config.block_size, loaded.device)
        self.generator = torch.Generator(loaded.device).manual_seed(config.seed)
        self.keep_logits = False
        self._ids = count()

    def add(self, prompt_ids: list[int], params: SamplingParams, *, arrival_s: float | None = None) -> Sequence:
        """Queue a request. Raises KvtoolError for a prompt that is empty, out of vocabulary, or too long."""
        vocab_size = self.loaded.vocab_size
        if not prompt_ids:
            raise KvtoolError("the prompt is empty: at least one token is needed")
        for token in (min(prompt_ids), max(prompt_ids)):
            if not 0 <= token < vocab_size:
                raise KvtoolError(f"token id {token} is outside the vocabulary of {vocab_size}")
        if len(prompt_ids) + params.max_tokens > self.loaded.max_positions:
            raise KvtoolError(
                f"{len(prompt_ids)} prompt tokens and {params.max_tokens} output tokens exceed the "
                f"{self.loaded.max_positions} positions of this run"
            )
        sequence = Sequence(
            id=next(self._ids),
            token_ids=list(prompt_ids),
            prompt_tokens=len(prompt_ids),
            params=params,
            arrival_s=self.clock() if arrival_s is None else arrival_s,
        )
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Sequence]:
        """Compute one batch. Returns the sequences that got a token."""
        work = self.scheduler.schedule()
        tokens = self.run(work)
        return self.postprocess(work, tokens)

    def run(self, work: list[Work]) -> list[int]:
        """The next token of each item that completes, in order."""
        batch = build_batch(work, self.loaded.device)
        params = [item.sequence.params for item in work if item.completes]
        with device_errors("a step of the engine"):
            logits = self.loaded.transformer(batch, self.pool.layers, self.loaded.kernels)
            if self.keep_logits:
                self._keep(work, logits)
            return sample(logits, params, self.generator).tolist() if params else []

    def _keep(self, work: list[Work], logits: torch.Tensor) -> None:
        sequences = [item.sequence for item in work if item.completes]
        for sequence, row in zip(sequences, logits, strict=True):
            sequence.logits.append(row)

    def postprocess(self, work: list[Work], tokens: list[int]) -> list[Sequence]:
        """Append the tokens, let finished sequences go, and make what was computed available to others."""
        now = self.clock()
        stepped = [item.sequence for item in work if item.completes]
        for item in work:
            self.scheduler.computed(item)
        for sequence, token in zip(stepped, tokens, strict=True):
            sequence.token_ids.append(token)
            sequence.token_times_s.append(now)
            if self._is_finished(sequence, token):
                self.scheduler.finish(sequence)
        return stepped

    def run_until_idle(self) -> Iterator[list[Sequence]]:
        """Step until nothing is left to do."""
        while not self.scheduler.is_idle:
            yield self.step()

    def _is_finished(self, sequence: Sequence, token: int) -> bool:
        params = sequence.params
        stops = not params.ignore_eos and token in runnable_decoder(self.loaded.model).eos_token_ids
        return stops or len(sequence.token_ids) - sequence.prompt_tokens >= params.max_tokens
