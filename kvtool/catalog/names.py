"""Names beyond those of the catalogue: Ollama tags, and variants and quantised repositories of a model that it knows.

`llama3.1:8b`, `Qwen3-14B-AWQ`, `RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8`: what is left of a name without the
words of a variant names the base; the words say how the weights are stored, as such repositories usually store them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kvtool.catalog.model import Model, Quantisation
from kvtool.catalog.quantised.parts import BEYOND

_TOKEN = re.compile(r"[a-z]+|\d+(?:\.\d+)*")
_TRAINING = re.compile(r"\d{4}|coder|math")
# Words that change neither the layers nor how the weights are stored.
_PLAIN = (
    "instruct|chat|it|pt|base|hf|thinking|reasoning|latest|preview|quantized|quant|unsloth|mlx|ud|text|exp|abliterated|"
    "sft|dpo|original|optimized|onnx|tgi|llmcompressor|autoround|marlin|calib|sym|asym|channel|dynamic|block|static|"
    "per-tensor|per-channel|kv|kvc|kv8|mtp|imatrix|i1|g128|128g|gs128|actorder|vllm|sglang|nm|testing|qat"
)
_GROUP_4BIT = 4 + (16 + 4) / 128  # AWQ and GPTQ: an fp16 scale and a zero point for 128 weights
_NF4 = 4 + 8 / 64 + 32 / (64 * 256)
# Bits of a weight in llama.cpp's mixes, as its quantize tool prints them for Llama-3.1-8B.
_GGUF_BITS = {
    "q2_k": 3.16, "q3_k_s": 3.64, "q3_k_m": 4.0, "q3_k_l": 4.3, "q4_0": 4.66, "q4_k_s": 4.67, "q4_k_m": 4.89,
    "q5_0": 5.59, "q5_k_s": 5.57, "q5_k_m": 5.7, "q6_k": 6.56, "q8_0": 8.5, "iq4_xs": 4.45, "iq4_nl": 4.68,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsWord:
    """A word of a repository's name that says how its weights are stored: None of bits where it does not say enough.

    `outer_bits` are those of embedding and output head, which most formats keep at the model's dtype (None).
    """

    method: str
    bits: float | None
    outer_bits: float | None = None


_WEIGHTS: dict[str, WeightsWord | None] = {
    **{name: WeightsWord(method=name, bits=bits, outer_bits=bits) for name, bits in _GGUF_BITS.items()},
    "awq": WeightsWord(method="awq", bits=_GROUP_4BIT),
    "gptq-int8": WeightsWord(method="gptq", bits=8 + (16 + 8) / 128),
    "gptq-8bit": WeightsWord(method="gptq", bits=8 + (16 + 8) / 128),
    "gptq": WeightsWord(method="gptq", bits=_GROUP_4BIT),
    "w4a16": WeightsWord(method="compressed-tensors", bits=4 + 16 / 128),
    "w8a16": WeightsWord(method="compressed-tensors", bits=8.0),
    "w8a8": WeightsWord(method="compressed-tensors", bits=8.0),
    "nvfp4": WeightsWord(method="nvfp4", bits=4.5),
    "mxfp4": WeightsWord(method="mxfp4", bits=4.25),
    "fp4": WeightsWord(method="nvfp4", bits=4.5),
    "fp8": WeightsWord(method="fp8", bits=8.0),
    "bnb-4bit": WeightsWord(method="bitsandbytes", bits=_NF4),
    "bnb-8bit": WeightsWord(method="bitsandbytes", bits=8.0),
    "int8": WeightsWord(method="int8", bits=8.0),
    "int4": WeightsWord(method="int4", bits=_GROUP_4BIT),
    "8bit": WeightsWord(method="8bit", bits=8.5),
    "6bit": WeightsWord(method="6bit", bits=6.5),
    "4bit": WeightsWord(method="4bit", bits=4.5),
    "gguf": WeightsWord(method="gguf", bits=None),
    "exl2": WeightsWord(method="exl2", bits=None),
    "exl3": WeightsWord(method="exl3", bits=None),
    **dict.fromkeys(("bf16", "fp16", "f16")),
}
_STORED = re.compile(rf"(?<![a-z0-9])({'|'.join(map(re.escape, sorted(_WEIGHTS, key=len, reverse=True)))})(?![a-z0-9])")
_WORD = re.compile(rf"(?<![a-z0-9])(?:{_PLAIN})(?![a-z0-9])")
_OLLAMA_DEFAULT = "q4_k_m"  # what a tag that names no type is


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A name taken apart: `core` names the base in any spelling, `stored` are the words about its weights."""

    core: tuple[str, ...]
    stored: tuple[str, ...]
    ollama: bool

    def loosened(self) -> Variant:
        """Without the date of a release (0528, 2507) or what it was trained for, which rarely change the layers."""
        return replace(self, core=tuple(token for token in self.core if not _TRAINING.fullmatch(token)))


def take_apart(name: str) -> Variant:
    """`RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8` -> llama 3.1 8 b, stored as w8a8."""
    last = name.strip().lower().rsplit("/", 1)[-1].removesuffix(".gguf")
    text = re.sub(r"[\s:]+", "-", last)
    stored = tuple(_STORED.findall(text))
    rest = _WORD.sub("-", _STORED.sub("-", text))
    tokens = tuple(_TOKEN.findall(rest))
    return Variant(core=tokens[1:] if tokens[:2] == ("meta", "llama") else tokens, stored=stored, ollama=":" in last)


def core_of(names: Iterable[str]) -> set[tuple[str, ...]]:
    """The cores of a catalogue entry's names."""
    return {core for name in names if (core := take_apart(name).core)}


def as_variant(base: Model, name: str, variant: Variant) -> Model:
    """The base under the name asked for, its weights as the name says, and both said in `assumed`."""
    words = [_WEIGHTS[word] for word in variant.stored]
    known = [word for word in words if word is not None]
    said = (
        f"assumed: {name} is taken to have the layers of {base.id}, whose name it varies; its own config was not read"
    )
    if not words and (not variant.ollama or base.quantisation is not None):
        return replace(base, id=name, assumed=(said,))
    if words and not known:  # bf16, fp16
        return replace(
            base, id=name, quantisation=None, assumed=(said, f"assumed: {name} has weights as its name says")
        )
    word = next((word for word in known if word.bits is not None), next(iter(known), _WEIGHTS[_OLLAMA_DEFAULT]))
    assert word is not None
    # A GGUF file holds no towers; elsewhere they and draft layers stay as they were.
    whole: frozenset[str] = frozenset() if word.outer_bits is not None else frozenset({BEYOND})
    stored = Quantisation(
        method=word.method,
        bits_per_weight=word.bits,
        whole=whole,
        embedding_bits=word.outer_bits,
        head_bits=word.outer_bits,
    )
    how = (
        f"{word.bits:.4g} bits a weight of the layers, scales included, as {word.method} usually has"
        + ("; a mix that keeps attention in more bits takes more" if word.method == "nvfp4" else "")
        if word.bits is not None
        else f"not known: {word.method} comes in many sizes; give the file, or the type, as q4_k_m"
    )
    return replace(base, id=name, quantisation=stored, assumed=(said, f"assumed: {name}: weights are {how}"))
