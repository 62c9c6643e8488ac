"""Images and video that vLLM profiles with a multimodal model: as many of the largest as a batch takes, encoded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvtool.catalog.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """The largest item of a family's processor and the encoder that reads it: `pixels` numbers go in as `patches` rows
    of `hidden`, through an MLP of `intermediate`, and come out as `tokens` rows of the text model's width, `outputs`
    times. `rows` is how many tensors of `hidden` its layers hold at once.

    `names` tells a multimodal model among text models of the same architecture by its id.
    """

    architectures: tuple[str, ...]
    pixels: int
    patches: int
    tokens: int
    hidden: int
    intermediate: int
    source: str
    outputs: int = 1
    rows: int = 4
    names: str = ""


_QWEN_PATCHES = 4 * 16384  # the processors' largest image, 16 million pixels, as 16,384 merged tokens
TOWERS = (
    Tower(
        architectures=("gemma3_text",),
        names=r"gemma-?3-?(4b|12b|27b)|medgemma|shieldgemma-2",
        pixels=3 * 896 * 896,
        patches=64 * 64,
        tokens=256,
        hidden=1152,
        intermediate=4304,
        source="google/gemma-3-27b-it: preprocessor_config.json, vision_config",
    ),
    Tower(
        architectures=("mistral",),
        names=r"mistral-small-3\.[12]|magistral-small-(1\.2|2509)|pixtral",
        pixels=3 * 1540 * 1540,
        patches=110 * 110,
        tokens=55 * 56,
        hidden=1024,
        intermediate=4096,
        source="mistralai/Mistral-Small-3.1-24B-Instruct-2503: preprocessor_config.json, vision_config",
    ),
    Tower(
        architectures=("granite",),
        names=r"granite-vision",
        pixels=11 * 3 * 384 * 384,
        patches=11 * 27 * 27,
        tokens=11 * 27 * 27 + 5 * 27,
        hidden=1152,
        intermediate=4304,
        source="ibm-granite/granite-vision: image_grid_pinpoints of up to ten tiles of 384, SigLIP",
    ),
    Tower(
        architectures=("qwen3_vl_text", "qwen3_vl_moe_text"),
        pixels=_QWEN_PATCHES * 3 * 2 * 16 * 16,
        patches=_QWEN_PATCHES,
        tokens=16384,
        hidden=1152,
        intermediate=4304,
        outputs=4,
        rows=28,  # fitted to the one public start: 5.2 GiB of Qwen3-VL-30B-A3B on an A100
        source="Qwen/Qwen3-VL-30B-A3B-Instruct: preprocessor_config.json, vision_config",
    ),
    Tower(
        architectures=("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl"),
        pixels=_QWEN_PATCHES * 3 * 2 * 14 * 14,
        patches=_QWEN_PATCHES,
        tokens=16384,
        hidden=1280,
        intermediate=3420,
        source="Qwen/Qwen2.5-VL-7B-Instruct: preprocessor_config.json, vision_config",
    ),
)


def tower_of(model: Model) -> Tower | None:
    """The encoder of a model that takes images, as far as it is known; None for text models and unknown ones."""
    for tower in TOWERS:
        if model.architecture in tower.architectures and re.search(tower.names, model.id, re.IGNORECASE):
            return tower
    return None


def held_bytes(tower: Tower, batched_tokens: int, hidden_size: int, element_bytes: int) -> int:
    """The items and what they became, which stay until the profile run is over."""
    outputs = tower.tokens * hidden_size * tower.outputs
    return items(tower, batched_tokens) * (tower.pixels + outputs) * element_bytes


def tower_peak_bytes(tower: Tower, batched_tokens: int, element_bytes: int) -> int:
    """The encoder's own peak: its pixels, its hidden states and the two inner tensors of its MLP."""
    row = tower.rows * tower.hidden + 2 * tower.intermediate
    return items(tower, batched_tokens) * (tower.pixels + tower.patches * row) * element_bytes


def items(tower: Tower, batched_tokens: int) -> int:
    """How many of the largest items a batch takes: one at least (MultiModalBudget)."""
    return max(1, batched_tokens // tower.tokens)
