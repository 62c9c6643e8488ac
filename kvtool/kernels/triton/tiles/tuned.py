"""Tiles that were timed on a card: one file a card in `cards/`, made by `tools/tune.py`.

They stand for the rules of `configs` on that card, with the Triton they were timed with: what fits in registers differs
between versions. Without a file the rules stand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kvtool.kernels.triton.tiles.rules import Shape, Tile
from kvtool.system.errors import KvtoolError

CARDS = Path(__file__).parent / "cards"


class TunedTile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A shape's fastest tile: the milliseconds of a call with it and with the tile of the rules, in the same run."""

    shape: Shape
    tile: Tile
    work: str
    ms: float
    rule_ms: float


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`triton` is the version that compiled them, as 3.6."""

    card: str
    triton: str
    torch: str
    date_utc: str
    tiles: list[TunedTile]


def tiles_of(card: str, triton: str, folder: Path = CARDS) -> Mapping[Shape, Tile]:
    """What was timed on `card` with this Triton; empty where nothing was. Raises KvtoolError for a damaged file."""
    path = folder / file_name(card)
    if not path.exists():
        return {}
    found = read_card(path)
    return {each.shape: each.tile for each in found.tiles} if found.triton == minor(triton) else {}


def read_card(path: Path) -> Card:
    """Raises KvtoolError for a file that is not one, or holds a tile that no kernel can run with."""
    try:
        card = msgspec.json.decode(path.read_bytes(), type=Card)
    except (OSError, msgspec.DecodeError) as error:
        raise KvtoolError(f"{path} is no file of tiles: {error}") from None
    for each in card.tiles:
        if (wrong := each.tile.fault) is not None:
            raise KvtoolError(f"{path}: the tile of {each.work} {wrong}")
    return card


def file_name(card: str) -> str:
    """`NVIDIA H100 80GB HBM3` -> `nvidia-h100-80gb-hbm3.json`."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") + ".json"


def minor(version: str) -> str:
    """`3.6.0` -> `3.6`."""
    return ".".join(version.split(".")[:2])
