"""KIVI's cache of one sequence: keys packed by channel, values by token, the newest tokens whole until they are older.

Liu et al. 2024 (arXiv 2402.02750). A sequence grows by at most `group` tokens a step, from a multiple of it: then each
query sees as whole what a decode of one token at a time would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvtool.kernels.packed.codec import Codec
from kvtool.kernels.packed.pages import PackedPages
from kvtool.kernels.packed.rotation import rotate_heads


@dataclass(eq=False, slots=True)
class Grown:
    """What is kept so far, oldest first: packed keys [N/group,HKV,D,bytes] and values [N/group,group,HKV,bytes] of the
    first N tokens, whole keys [W,HKV,D] and values [W,HKV,DV] of the W tokens after them."""

    keys: Tensor
    values: Tensor
    whole_keys: Tensor
    whole_values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class KiviPages(PackedPages):
    """`key` packs one channel of `group` tokens, `value` one vector. At least `residual` tokens stay whole. Tokens come
    in order, so that slots and block tables say nothing: k and v of the pages are empty."""

    group: int
    residual: int
    grown: Grown

    @property
    def tensors(self) -> list[Tensor]:
        grown = self.grown
        return [grown.keys, grown.values, grown.whole_keys, grown.whole_values]

    def write(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        self.settle()
        if len(k) > self.group:
            raise ValueError(f"{len(k)} tokens at once: a KIVI cache takes at most {self.group}")
        grown = self.grown
        turned = [rotate_heads(x) if self.rotated else x for x in (k, v)]
        grown.whole_keys = torch.cat((grown.whole_keys, turned[0].to(grown.whole_keys.dtype)))
        grown.whole_values = torch.cat((grown.whole_values, turned[1].to(grown.whole_values.dtype)))

    def read(self, table: Tensor, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        grown = self.grown
        keys = self.key.decode(grown.keys).permute(0, 3, 1, 2).flatten(0, 1)
        k = torch.cat((keys, grown.whole_keys.float()))[:tokens]
        v = torch.cat((self.value.decode(grown.values).flatten(0, 1), grown.whole_values.float()))[:tokens]
        return tuple((rotate_heads(x) if self.rotated else x).to(dtype) for x in (k, v))  # type: ignore[return-value]

    def copy(self) -> KiviPages:
        """The same in memory of its own."""
        return replace(self, grown=Grown(*(tensor.clone() for tensor in self.tensors)))

    def settle(self) -> None:
        """Pack the groups that have left the residual."""
        grown = self.grown
        count = max(0, len(grown.whole_keys) - self.residual) // self.group * self.group
        if count:
            k, v = (x[:count].unflatten(0, (-1, self.group)) for x in (grown.whole_keys, grown.whole_values))
            grown.keys = torch.cat((grown.keys, self.key.encode(k.permute(0, 2, 3, 1))))
            grown.values = torch.cat((grown.values, self.value.encode(v)))
            grown.whole_keys, grown.whole_values = grown.whole_keys[count:].clone(), grown.whole_values[count:].clone()


def kivi_pages(
    key: Codec, value: Codec, *, kv_heads: int, k_head_dim: int, residual: int, rotated: bool, device: torch.device
) -> KiviPages:
    """An empty cache of one sequence; `key` packs as many tokens of a channel as it has elements."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(0, *shape, dtype=dtype, device=device)

    none = empty(0, kv_heads, 0, dtype=torch.uint8)
    return KiviPages(
        k=none,
        v=none,
        key=key,
        value=value,
        rotated=rotated,
        group=key.elements,
        residual=residual,
        grown=Grown(
            keys=empty(kv_heads, k_head_dim, key.stored_bytes, dtype=torch.uint8),
            values=empty(key.elements, kv_heads, value.stored_bytes, dtype=torch.uint8),
            whole_keys=empty(kv_heads, k_head_dim, dtype=torch.bfloat16),
            whole_values=empty(kv_heads, value.elements, dtype=torch.bfloat16),
        ),
    )
