"""Where checkpoints keep a decoder's tensors. Decoders ask by Llama's names; what differs is a table here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from kvtool.catalog.model import FullAttention, Model

_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(\w+)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor of a checkpoint: `name`, one expert's part where it holds all, then `part` of that. Norm weights of
    Gemma are stored less one."""

    name: str
    expert: int | None = None
    part: Callable[[Tensor], Tensor] = lambda whole: whole
    less_one: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How a family differs from Llama. `modules` renames what stands inside a layer, or outside all of them; `stacked`
    says which modules one tensor holds, row after row; `roots` are what names may begin with in place of `model.`."""

    roots: tuple[str, ...] = ("model.", "model.language_model.", "language_model.model.", "")
    layers: str = "layers"
    modules: Mapping[str, str] = field(default_factory=dict)
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()  # stored modules that lie as [in, out] (Conv1D)
    experts: Mapping[str, str] = field(default_factory=dict)  # names of one expert's own parts
    fused_experts: bool = False  # all experts in one tensor, gate and up interleaved (gpt-oss)
    norms_less_one: bool = False


_GEMMA = Naming(norms_less_one=True)
_NAMINGS = {
    "mixtral": Naming(
        modules={"mlp.gate": "block_sparse_moe.gate", "mlp.experts": "block_sparse_moe.experts"},
        experts={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    ),
    "phi3": Naming(
        stacked={"self_attn.qkv_proj": _QKV, "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")},
    ),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt_oss": Naming(modules={"mlp.gate": "mlp.router"}, fused_experts=True),
    "gpt2": Naming(
        roots=("transformer.", ""),
        layers="h",
        modules={
            "embed_tokens": "wte",
            "embed_positions": "wpe",
            "norm": "ln_f",
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
            "self_attn.o_proj": "attn.c_proj",
            "mlp.up_proj": "mlp.c_fc",
            "mlp.down_proj": "mlp.c_proj",
        },
        stacked={"attn.c_attn": _QKV},
        transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    ),
    "opt": Naming(
        roots=("model.decoder.", "decoder."),
        modules={
            "norm": "final_layer_norm",
            "input_layernorm": "self_attn_layer_norm",
            "post_attention_layernorm": "final_layer_norm",
            "self_attn.o_proj": "self_attn.out_proj",
            "mlp.up_proj": "fc1",
            "mlp.down_proj": "fc2",
        },
    ),
}


class CheckpointNames:
    """Finds a decoder's tensors among the names that a checkpoint of `model` stores."""

    def __init__(self, model: Model, stored: Collection[str]) -> None:
        family = model.decoder.family if model.decoder else ""
        self._naming = _NAMINGS.get(family, Naming())
        embedding = self._naming.modules.get("embed_tokens", "embed_tokens")
        roots = self._naming.roots
        self._root = next((root for root in roots if f"{root}{embedding}.weight" in stored), roots[0])
        self._rows = _rows_of_qkv(model)

    def find(self, name: str) -> Stored:
        """Where the tensor lies that Llama would call `name`."""
        module, kind = name.rsplit(".", 1)
        if module == "lm_head":
            return Stored(name=name)
        layer = _LAYER.fullmatch(module)
        within = self._root + (f"{self._naming.layers}.{layer[1]}." if layer else "")
        inner = layer[2] if layer else module.removeprefix("model.")
        expert = _EXPERT.fullmatch(inner)
        if expert:
            return self._expert(within, int(expert[1]), expert[2], kind)
        return self._module(within, inner, kind)

    def _module(self, within: str, inner: str, kind: str) -> Stored:
        naming = self._naming
        holder = next((holder for holder, parts in naming.stacked.items() if inner in parts), None)
        stored = holder or naming.modules.get(inner, inner)
        index = naming.stacked[holder].index(inner) if holder else None
        rows = self._rows if inner in _QKV else None
        transposed = stored in naming.transposed and kind == "weight"

        def part(whole: Tensor) -> Tensor:
            turned = whole.T if transposed else whole
            return turned if index is None else _stacked_part(turned, rows, index)

        less_one = naming.norms_less_one and inner.endswith("norm") and kind == "weight"
        return Stored(name=f"{within}{stored}.{kind}", part=part, less_one=less_one)

    def _expert(self, within: str, expert: int, part: str, kind: str) -> Stored:
        naming = self._naming
        block = naming.modules.get("mlp.experts", "mlp.experts")
        if not naming.fused_experts:
            return Stored(name=f"{within}{block}.{expert}.{naming.experts.get(part, part)}.{kind}")
        holder = "down_proj" if part == "down_proj" else "gate_up_proj"
        first = {"gate_proj": 0, "up_proj": 1}.get(part)

        def own(whole: Tensor) -> Tensor:
            rows = whole.T if kind == "weight" else whole
            return rows if first is None else rows[first::2]

        return Stored(name=f"{within}{block}.{holder}{'_bias' * (kind == 'bias')}", expert=expert, part=own)


def _rows_of_qkv(model: Model) -> tuple[int, ...]:
    """How many rows queries, keys and values have; none in a model whose layers are not all alike in that."""
    shapes = [layer.cache for layer in model.layers if isinstance(layer.cache, FullAttention)]
    if not shapes:
        return ()
    shape = shapes[0]
    return tuple(heads * shape.k_head_dim for heads in (model.num_heads, shape.kv_heads, shape.kv_heads))


def _stacked_part(whole: Tensor, rows: tuple[int, ...] | None, index: int) -> Tensor:
    """Part `index` of rows stacked by these numbers, or in halves. A stack of another height is returned whole."""
    if rows is None:
        return whole.chunk(2)[index]
    return whole.split(rows)[index] if len(whole) == sum(rows) else whole
