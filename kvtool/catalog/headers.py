"""Which tensors a checkpoint has and how many bytes they take, whatever its file format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor: `dtype` as the file names it, `size_bytes` as it stores it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    file: Path

    @property
    def params(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """All tensors of a checkpoint, over all its files."""

    tensors: tuple[TensorHeader, ...]

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def params(self) -> int:
        """Elements stored. In a quantised checkpoint packed weights and scales count as stored too."""
        return sum(tensor.params for tensor in self.tensors)
