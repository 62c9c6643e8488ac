"""The decode step of each bucket of rows, recorded once as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kvtool.engine.graphs.decode_step import PADDING, DecodeRows, decode_step
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool
from kvtool.engine.sampler import Draw
from kvtool.machine.device import device_errors
from kvtool.units import round_up

WARM_UPS = 2  # the first compiles and, where it is prepared, times what is chosen by timing; the second finds all done
SMALL_BUCKETS = (1, 2, 4)
BUCKET_STEP = 8

Step = Callable[[], None]


class Capture(Protocol):
    """How a step becomes one that is cheap to launch."""

    def __call__(self, step: Step, generator: torch.Generator) -> Step:
        """What does what `step` does. May run `step` a few times first, which draws nothing from `generator`."""


class CudaCapture:
    """Records a step as a CUDA graph. All graphs share one pool of memory, as they are replayed in turn."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step, generator: torch.Generator) -> Step:
        self._warm_up(step, generator)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)  # each replay then goes on drawing where the last one stopped
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
            step()
        return graph.replay

    def _warm_up(self, step: Step, generator: torch.Generator) -> None:
        """On the stream that records: kernels are compiled and libraries have their workspaces there."""
        state = generator.get_state()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(self._stream)
        generator.set_state(state)


def captured_bytes(loaded: LoadedModel, num_rows: int) -> int:
    """Memory that captured steps of up to so many rows hold at least, which all of them share: that of their logits."""
    return num_rows * loaded.vocab_size * loaded.torch_dtype.itemsize


def bucket_of(num_rows: int, most: int) -> int:
    """The rows of the smallest bucket for `num_rows`: 1, 2, 4, 8, 16, 24, ... and `most`."""
    size = next((small for small in SMALL_BUCKETS if num_rows <= small), round_up(num_rows, BUCKET_STEP))
    return min(size, most)


class DecodeGraphs:
    """Decode steps over the first rows of `rows`, by bucket and by what is asked of the sampler."""

    def __init__(
        self,
        loaded: LoadedModel,
        pool: KvPool,
        rows: DecodeRows,
        generator: torch.Generator,
        capture: Capture,
        clock: Callable[[], float],
    ) -> None:
        self.capture_s = 0.0
        self._loaded, self._pool, self._rows, self._generator = loaded, pool, rows, generator
        self._capture, self._clock = capture, clock
        self._captured: dict[tuple[int, Draw, bool], Step] = {}
        self._logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self._captured)

    @property
    def buckets(self) -> list[int]:
        """The numbers of rows that steps were captured for, in that order."""
        return list(dict.fromkeys(bucket for bucket, _, _ in self._captured))

    def step(self, num_rows: int, draw: Draw, *, keep_logits: bool) -> Tensor | None:
        """Launch a step of the first `num_rows` rows. Their logits [num_rows, vocab] stay until the next one."""
        self.prepare(num_rows, draw, keep_logits=keep_logits)()
        return self._logits[:num_rows] if keep_logits and self._logits is not None else None

    def prepare(self, num_rows: int, draw: Draw, *, keep_logits: bool) -> Step:
        """The step of the bucket for `num_rows` rows, captured if it is not yet."""
        bucket = bucket_of(num_rows, len(self._rows.positions))
        key = bucket, draw, keep_logits
        if key not in self._captured:
            start_s = self._clock()
            with device_errors(f"capturing a decode step of {bucket} sequences"):
                self._captured[key] = self._captured_step(bucket, draw, self._kept() if keep_logits else None)
            self.capture_s += self._clock() - start_s
        return self._captured[key]

    def _captured_step(self, bucket: int, draw: Draw, logits: Tensor | None) -> Step:
        """Captured over padding alone, so that warming up computes no sequence; the rows come back as they were."""
        rows = self._rows.first(bucket)
        held = rows.token_ids.clone(), rows.positions.clone()
        rows.positions.fill_(PADDING)
        step = partial(
            decode_step,
            self._loaded,
            self._pool,
            rows,
            draw,
            self._generator,
            None if logits is None else logits[:bucket],
        )
        try:
            return self._capture(step, self._generator)
        finally:
            rows.token_ids.copy_(held[0])
            rows.positions.copy_(held[1])

    def _kept(self) -> Tensor:
        """[rows, vocab] where a step leaves its logits, once anybody asked for them."""
        if self._logits is None:
            shape = len(self._rows.positions), self._loaded.vocab_size
            self._logits = torch.empty(shape, dtype=self._loaded.torch_dtype, device=self._loaded.device)
        return self._logits
