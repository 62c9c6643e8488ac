"""SGLang's offline engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NoReturn

from kvtool.bench.engines.checkpoint import Checkpoint
from kvtool.bench.engines.engine import Answers
from kvtool.bench.peers import PeerError, distribution_version, imported

NOTE = "its engine runs in processes of its own and streams every token to the caller, where they are timed"


def version() -> str | None:
    return distribution_version("sglang")


def start(checkpoint: Checkpoint) -> Sglang:
    checkpoint.require_first_gpu("SGLang")
    engine = imported("sglang").Engine(
        model_path=str(checkpoint.folder),
        skip_tokenizer_init=True,
        dtype=checkpoint.torch_dtype,
        context_length=checkpoint.max_tokens + 1,
        max_total_tokens=checkpoint.roomy_tokens,
        disable_radix_cache=True,
        log_level="error",
        custom_sigquit_handler=_child_died,
    )
    return Sglang(engine)


def _child_died(signal_number: int, frame: Any) -> NoReturn:
    """In place of SGLang's own handler, which ends this whole process when one of its children fails to start."""
    raise PeerError("failed: one of its processes died")


class Sglang:
    note = NOTE

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Answers:
        params = {"temperature": 0.0, "max_new_tokens": output_len, "ignore_eos": True}
        firsts_s: dict[int, float] = {}
        last_s = 0.0
        ids: list[list[int]] = [[] for _ in prompts]
        start_s = time.perf_counter()
        for chunk in self.engine.generate(
            input_ids=[list(prompt) for prompt in prompts], sampling_params=params, stream=True
        ):
            last_s = time.perf_counter() - start_s
            firsts_s.setdefault(chunk["index"], last_s)
            ids[chunk["index"]] = chunk["output_ids"]  # all so far: the same list, which grows
        return Answers(first_s=max(firsts_s.values()), last_s=last_s, output_ids=[list(row) for row in ids])

    def close(self) -> None:
        self.engine.shutdown()
