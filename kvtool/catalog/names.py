"""Names beyond those of the catalogue: Ollama tags, and variants and quantised repositories of a model that it knows.

`llama3.1:8b`, `Qwen3-14B-AWQ`, `RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8`: what is left of a name without the
words of a variant names the base; the words say how the weights are stored, as such repositories usually store them.
`NousResearch/Hermes-3-Llama-3.1-8B` holds the name of its base, with its size, among words of its own: of 16,849 public
repositories (llmfit 1.1.17) 2,000 are told so, and all but 2 of the 1,500 whose layers it gives have those of the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from kvtool.catalog.model import Model, Quantisation
from kvtool.catalog.quantised.parts import BEYOND

Core = tuple[str, ...]
Item = TypeVar("Item")
_TOKEN = re.compile(r"[a-z]+|\d+(?:\.\d+)*")
_RELEASE = re.compile(r"\d{4}")
# Words that change neither the layers nor how the weights are stored.
_PLAIN = (
    "instruct|chat|it|pt|base|hf|thinking|reasoning|latest|preview|quantized|quant|unsloth|mlx|ud|text|exp|abliterated|"
    "sft|dpo|original|optimized|onnx|tgi|llmcompressor|autoround|marlin|calib|sym|asym|channel|dynamic|block|static|"
    "per-tensor|per-channel|kv|kvc|kv8|mtp|imatrix|i1|4b-128g|g128|128g|gs128|actorder|vllm|sglang|nm|testing|qat|ct"
)
# What a repository is that has a model's name beside one of these: a draft for it, a part of it, or something more.
_ANOTHER = (
    *("eagle", "dflash", "dflare", "dspark", "domino", "vispec", "assistant", "medusa", "hydra", "speculat", "draft"),
    *("lora", "qlora", "adapter", "prune", "reap", "ream", "mini", "tiny", "nano", "lite", "moe"),
    *("llava", "vision", "vlm", "vl", "audio", "speech", "tts", "ocr", "embed", "rerank", "reward"),
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
    "5bit": WeightsWord(method="5bit", bits=5.5),
    "4bit": WeightsWord(method="4bit", bits=4.5),
    "gguf": WeightsWord(method="gguf", bits=None),
    "exl2": WeightsWord(method="exl2", bits=None),
    "exl3": WeightsWord(method="exl3", bits=None),
    "3bit": WeightsWord(method="3bit", bits=3.5),
    **dict.fromkeys(("bf16", "fp16", "f16", "q4_0-unquantized")),
}
_STORED = re.compile(
    rf"(?<![a-z0-9])({'|'.join(map(re.escape, sorted(_WEIGHTS, key=len, reverse=True)))})(?:-v\d+$|(?![a-z0-9]))"
)
_WORD = re.compile(rf"(?<![a-z0-9])(?:{_PLAIN})(?![a-z0-9])")
_OLLAMA_DEFAULT = "q4_k_m"  # what a tag that names no type is


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A name taken apart: `core` names the base in any spelling, `stored` are the words about its weights, `plain`
    those that change neither.
    """

    core: Core
    stored: tuple[str, ...]
    plain: frozenset[str]
    ollama: bool

    def loosened(self) -> Variant:
        """Without the date of a release (0528, 2507), and what it was trained for beside a size, which rarely change
        the layers.
        """
        trained_for = ("coder", "math") if "b" in self.core else ("coder",)
        kept = (token for token in self.core if not _RELEASE.fullmatch(token) and token not in trained_for)
        return replace(self, core=tuple(kept))


def take_apart(name: str) -> Variant:
    """`RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8` -> llama 3.1 8 b, stored as w8a8."""
    last = name.strip().lower().rsplit("/", 1)[-1].removesuffix(".gguf")
    text = re.sub(r"[\s:]+", "-", last)
    stored = tuple(_STORED.findall(text))
    unstored = _STORED.sub("-", text)
    rest = _WORD.sub("-", unstored)
    tokens = tuple(_TOKEN.findall(rest))
    return Variant(
        core=tokens[1:] if tokens[:2] == ("meta", "llama") else tokens,
        stored=stored,
        plain=frozenset(_WORD.findall(unstored)),
        ollama=":" in last,
    )


@dataclass(frozen=True, slots=True)
class Bases(Generic[Item]):
    """What names are variants of: the entries of each core, every one with the plain words of its name; `own` has those
    of their ids alone, which say more than short names do (mistral-7b is one of three).
    """

    by_core: Mapping[Core, Sequence[tuple[frozenset[str], Item]]]
    own: Mapping[Core, Sequence[tuple[frozenset[str], Item]]]

    def find(self, variant: Variant) -> tuple[Item, str] | None:
        """The entry that a name varies or holds the name of, and which of both; None where none or several are it."""
        for core in (variant.core, variant.loosened().core):
            if (item := _only(self.by_core.get(core, ()), variant.plain)) is not None:
                return item, "varies"
        for inner in _sized_parts(variant.core):
            if (item := _only(self.own.get(inner, ()), variant.plain)) is not None:
                return item, "holds"
        return None


def _only(known: Sequence[tuple[frozenset[str], Item]], plain: frozenset[str]) -> Item | None:
    """The one entry; of several that which has the same plain words (Kimi-K2-Thinking, -Instruct), or none of them."""
    for words in (None, plain, frozenset()):
        items = {id(item): item for own, item in known if words is None or own == words}
        if len(items) == 1:
            return next(iter(items.values()))
    return None


def index_bases(items: Iterable[tuple[Sequence[str], Item]]) -> Bases[Item]:
    """Of entries with all of their names, the id first."""
    found: dict[Core, list[tuple[frozenset[str], Item]]] = {}
    own: dict[Core, list[tuple[frozenset[str], Item]]] = {}
    for names, item in items:
        for variant in map(take_apart, names):
            if variant.core:
                found.setdefault(variant.core, []).append((variant.plain, item))
        name = take_apart(names[0])
        own.setdefault(name.core, []).append((name.plain, item))
    return Bases(found, own)


def _sized_parts(core: Core) -> Iterator[Core]:
    """The parts that may name a base, the longest first: each has the one size of the name, and what stands beside it
    makes no other thing of the model.
    """
    sizes = [i for i, token in enumerate(core[1:]) if token == "b" and core[i][0].isdigit()]
    for length in range(len(core) - 1, 2, -1):
        for start in range(len(core) - length + 1):
            end = start + length
            beside = core[:start] + core[end:]
            if sizes and all(start <= i and i + 1 < end for i in sizes) and not any(map(_is_another, beside)):
                yield core[start:end]


def _is_another(token: str) -> bool:
    return token.startswith(_ANOTHER)


def as_variant(base: Model, name: str, variant: Variant, relation: str = "varies") -> Model:
    """The base under the name asked for, its weights as the name says, and both said in `assumed`."""
    words = [_WEIGHTS[word] for word in variant.stored]
    known = [word for word in words if word is not None]
    said = (
        f"assumed: {name} is taken to have the layers of {base.id}, whose name it {relation}; its own config was not "
        "read"
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
