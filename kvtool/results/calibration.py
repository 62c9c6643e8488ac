"""What an engine really took of one GPU, term by term: put in the place of estimates by `kvtool size --calibration`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from kvtool.results.document import Struct, read_document
from kvtool.system.errors import KvtoolError

ByteCount = Annotated[int, msgspec.Meta(ge=0)]


class Calibration(Struct, frozen=True, kw_only=True):
    """Bytes of one GPU, each as measured, or None where only an estimate is to be had.

    `reserve_bytes` is what is neither weights nor torch's activations nor cache: the runtime's own memory and CUDA
    graphs. `kv_pool_bytes` is what was left for the cache and overrules the other terms. `source` says, in words, where
    the numbers come from: the engine, its version, its log.
    """

    schema: str = "kvtool.calibration/1"
    weights_bytes: ByteCount | None = None
    activation_bytes: ByteCount | None = None
    reserve_bytes: ByteCount | None = None
    kv_pool_bytes: ByteCount | None = None
    source: str

    @property
    def measured(self) -> dict[str, int]:
        """The terms that are given, by name."""
        terms = ("weights_bytes", "activation_bytes", "reserve_bytes", "kv_pool_bytes")
        return {name: value for name in terms if (value := getattr(self, name)) is not None}


def read_calibration(path: Path) -> Calibration:
    """A calibration from a file. Raises KvtoolError when it cannot be read, is none, or gives no term at all."""
    calibration = read_document(path, Calibration)
    if not calibration.measured:
        raise KvtoolError(f"{path} gives none of weights_bytes, activation_bytes, reserve_bytes, kv_pool_bytes")
    return calibration
