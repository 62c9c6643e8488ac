"""Weights of a GGUF file under HF's names, dequantised by the `gguf` package (llama.cpp's own)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvtool.errors import KvtoolError

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# llama.cpp rotates pairs (0, 1), (2, 3), … for these architectures, so its converter interleaved their Q and K rows.
_INTERLEAVED_ARCHITECTURES = ("llama",)


class GgufWeights:
    """The tensors of one .gguf file, memory-mapped; one is dequantised when it is asked for."""

    even_routing = False

    def __init__(self, path: Path, *, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        reader = _open(path)
        self.description = f"GGUF {path.name}"
        self._head_dim = head_dim
        self._dtype = dtype
        self._device = device
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        architecture = reader.get_field("general.architecture")
        self._interleaved = architecture is not None and architecture.contents() in _INTERLEAVED_ARCHITECTURES

    def tensor(self, name: str, *shape: int) -> Tensor:
        stored = self._tensors.get(_gguf_name(name))
        if stored is None:
            raise KvtoolError(f"the GGUF file has no tensor {_gguf_name(name)!r} (for {name!r})")
        import gguf

        dequantised = gguf.quants.dequantize(stored.data, stored.tensor_type)
        values = torch.from_numpy(dequantised if dequantised.flags.writeable else dequantised.copy())
        if tuple(values.shape) != shape:
            raise KvtoolError(
                f"tensor {stored.name!r} has shape {list(values.shape)}, but the metadata says {list(shape)}"
            )
        if self._interleaved and name.split(".")[-2] in ("q_proj", "k_proj"):
            values = _deinterleave_rows(values, self._head_dim)
        return values.to(device=self._device, dtype=self._dtype, copy=True)


def _open(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise KvtoolError("reading a GGUF file needs the gguf package: pip install 'kvtool[gguf]'") from error
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise KvtoolError(f"{path} is not a readable GGUF file: {error}") from error


def _gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return _OUTER.get(name, name)
    return f"blk.{match[1]}.{_INNER.get(match[2], match[2])}.{match[3]}"


def _deinterleave_rows(values: Tensor, head_dim: int) -> Tensor:
    """Rows (or bias entries) of each head from pair order 0 h 1 h+1 … back to halves 0 1 … h h+1 …."""
    paired = values.unflatten(0, (-1, head_dim // 2, 2))
    halves: Tensor = paired.transpose(1, 2)
    return halves.reshape(values.shape)
