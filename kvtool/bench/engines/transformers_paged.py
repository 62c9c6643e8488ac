"""transformers' continuous batching over a paged cache of its own."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Sequence
from typing import Any

from kvtool.bench.engines.checkpoint import Checkpoint
from kvtool.bench.engines.engine import Answers
from kvtool.bench.engines.transformers import version
from kvtool.bench.peers import PeerError, imported
from kvtool.units import ceil_div

__all__ = ["start", "version"]

PAGE_TOKENS = 256  # its default
MAX_BATCH_TOKENS = 8192  # its default, and ours
NOTE = "its own loop and pool; starting and warming them is not timed"
NEEDED = {"continuous_batching_config", "record_timestamps", "persistent_manager"}


def start(checkpoint: Checkpoint) -> ContinuousBatching:
    model = checkpoint.in_transformers
    told = inspect.signature(model.generate_batch).parameters if hasattr(model, "generate_batch") else {}
    if missing := sorted(NEEDED - set(told)):
        raise PeerError(f"transformers {version()} has no generate_batch with {', '.join(missing)}: 5.23 has")
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # not one of those set_verbosity reaches
    return ContinuousBatching(model, _config(checkpoint))


def _config(checkpoint: Checkpoint) -> Any:
    """As many pages as the largest case takes: else it would take what memory is left."""
    kind = imported("transformers.generation.configuration_utils").ContinuousBatchingConfig
    sizes = {
        "page_size": PAGE_TOKENS,
        "block_size": PAGE_TOKENS,  # as it was called before 5.17
        "num_blocks": checkpoint.max_batch * (ceil_div(checkpoint.max_tokens, PAGE_TOKENS) + 1),
        "max_batch_tokens": min(MAX_BATCH_TOKENS, checkpoint.max_batch * checkpoint.max_tokens),
        "allow_block_sharing": False,
    }
    known = {field.name for field in dataclasses.fields(kind)}
    if "page_size" in known:
        del sizes["block_size"]
    return kind(**{name: value for name, value in sizes.items() if name in known})


class ContinuousBatching:
    """`generate_batch` with a manager that lives as long as the shape of its batches stays the same."""

    note = NOTE

    def __init__(self, model: Any, config: Any) -> None:
        self.model, self.config = model, config
        self.shape: tuple[int, int, int] | None = None

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Answers:
        shape = (len(prompts), len(prompts[0]), output_len)
        if shape != self.shape:
            self.close()
            self.shape = shape
        found = self.model.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            continuous_batching_config=dataclasses.replace(self.config),  # which it fills in
            max_new_tokens=output_len,
            record_timestamps=True,
            persistent_manager=True,
        )
        return _answers(list(found.values()), len(prompts), output_len)

    def close(self) -> None:
        destroy = getattr(self.model, "destroy_cached_continuous_batching_manager", None)
        if destroy is not None:
            destroy()


def _answers(outputs: Sequence[Any], batch_size: int, output_len: int) -> Answers:
    """In the order of the prompts. Raises PeerError where it answered less than it was asked: it only logs that."""
    for output in outputs:
        if output.error is not None:
            raise PeerError(f"failed: {output.error}")
    if [len(output.generated_tokens) for output in outputs] != [output_len] * batch_size:
        raise PeerError(f"gave up: {len(outputs)} of {batch_size} prompts were answered in full")
    start_s = min(output.created_time for output in outputs)
    return Answers(
        first_s=max(output.timestamps[0] for output in outputs) - start_s,
        last_s=max(output.timestamps[-1] for output in outputs) - start_s,
        output_ids=[list(output.generated_tokens) for output in outputs],
    )
