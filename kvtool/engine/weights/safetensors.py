"""Weights of a Hugging Face folder: one or more safetensors files, read lazily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvtool.catalog.model import Model
from kvtool.engine.weights import int8
from kvtool.engine.weights.mxfp4 import dequantised
from kvtool.engine.weights.names import CheckpointNames, Stored
from kvtool.engine.weights.source import finite
from kvtool.kernels.blocks import Blocks
from kvtool.system.errors import KvtoolError, did_you_mean

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class SafetensorsWeights:
    """The tensors of `model` in `folder`. Files stay memory-mapped; a tensor is copied when it is asked for."""

    even_routing = False

    def __init__(self, folder: Path, model: Model, *, dtype: torch.dtype, device: torch.device) -> None:
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
        self._names = CheckpointNames(model, self._open)

    def tensor(self, name: str, *shape: int) -> Tensor:
        stored = self._names.find(name)
        whole = self._expert(stored) if stored.expert is not None else self._whole(stored.name)
        found = stored.part(whole)
        if tuple(found.shape) != shape:
            raise KvtoolError(
                f"tensor {stored.name!r} has shape {list(found.shape)}, but the config says {list(shape)}"
            )
        if stored.less_one:  # in fp32: 1 + weight would lose the weight's bits in a narrower dtype
            return finite(stored.name, (found.float() + 1).to(device=self._device))
        # Contiguous whatever the checkpoint's layout: products read rows.
        return finite(stored.name, found.to(device=self._device, dtype=self._dtype, copy=True).contiguous())

    def blocks(self, name: str) -> Blocks | None:
        if self._device.type != "cpu" or self._dtype != torch.bfloat16:
            return None
        stored = self._names.find(name)
        found = None if stored.expert is not None else self._int8(stored.name)
        return None if found is None else found.map(stored.part)

    def _int8(self, name: str) -> Blocks | None:
        return int8.int8_blocks(name, self._open, lambda stored: self._handle(stored).get_tensor(stored))

    def _whole(self, name: str) -> Tensor:
        blocks = self._int8(name)
        if blocks is not None:
            return int8.dequantised(blocks)
        return self._checked(name, self._handle(name).get_tensor(name))

    def _expert(self, stored: Stored) -> Tensor:
        """One expert out of a tensor of all, read alone; dequantised to the layout [in, out] where it is in MXFP4."""
        name = stored.name
        if name not in self._open and f"{name}_blocks" in self._open:
            blocks, scales = (self._row(f"{name}_{kind}", stored.expert) for kind in ("blocks", "scales"))
            return dequantised(blocks, scales).T
        return self._checked(name, self._row(name, stored.expert))

    def _row(self, name: str, index: int | None) -> Tensor:
        rows = self._handle(name).get_slice(name)
        if index is None or index >= rows.get_shape()[0]:
            raise KvtoolError(f"tensor {name!r} has {rows.get_shape()[0]} experts, but the config says more")
        found: Tensor = rows[index]
        return found

    def _handle(self, name: str) -> Any:
        handle = self._open.get(name)
        if handle is None:
            raise KvtoolError(f"the weights have no tensor {name!r}{did_you_mean(name, self._open)}")
        return handle

    def _checked(self, name: str, found: Tensor) -> Tensor:
        if found.dtype not in _FLOATS:
            raise KvtoolError(
                f"tensor {name!r} is stored as {found.dtype}: the engine runs checkpoints in fp32, bf16 and fp16, and "
                "int8 of compressed-tensors"
            )
        return found
