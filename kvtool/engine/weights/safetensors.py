"""Weights of a Hugging Face folder: one or more safetensors files, read lazily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvtool.errors import KvtoolError, did_you_mean

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class SafetensorsWeights:
    """The tensors of `folder`. Files stay memory-mapped; a tensor is copied when it is asked for."""

    even_routing = False

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: torch.device) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise KvtoolError(f"{folder} has no *.safetensors file: point --weights at a folder with weights")
        self.description = f"safetensors {folder.name}"
        self._dtype = dtype
        self._device = device
        self._open: dict[str, Any] = {}
        for file in files:
            try:
                handle = safe_open(file, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise KvtoolError(f"{file} is not a readable safetensors file: {error}") from error
            self._open.update(dict.fromkeys(handle.keys(), handle))

    def tensor(self, name: str, *shape: int) -> Tensor:
        handle = self._open.get(name)
        if handle is None:
            raise KvtoolError(f"the weights have no tensor {name!r}{did_you_mean(name, self._open)}")
        found: Tensor = handle.get_tensor(name)
        if tuple(found.shape) != shape:
            raise KvtoolError(f"tensor {name!r} has shape {list(found.shape)}, but the config says {list(shape)}")
        if found.dtype not in _FLOATS:
            raise KvtoolError(
                f"tensor {name!r} is stored as {found.dtype}: the engine runs fp32, bf16 and fp16 checkpoints"
            )
        return found.to(device=self._device, dtype=self._dtype, copy=True)
