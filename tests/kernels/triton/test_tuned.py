"""Tiles that were timed on a card: which one a launch takes, what a file may hold, and how the fastest is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import pytest
import torch

from kvtool.bench.kernels.options import KernelsOptions
from kvtool.bench.kernels.work import KernelWork, plan
from kvtool.catalog.resolve import inline_model
from kvtool.kernels.triton import gpu
from kvtool.kernels.triton.tiles.rules import Shape, Tile, Tiles
from kvtool.kernels.triton.tiles.tuned import CARDS, Card, TunedTile, file_name, minor, read_card, tiles_of
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.system.errors import KvtoolError
from tests.kernels.conftest import INTERPRETED
from tools import tune as tool
from tools import tuning

interpreted = pytest.mark.skipif(not INTERPRETED, reason="launches Triton kernels")
CPU = torch.device("cpu")
SHAPE = Shape("decode", head_dim=128, rope_dim=0, rows=4, query_bytes=2, cache_bytes=2, page=64)
TILE = Tile(16, 64, num_warps=4, num_stages=4)
H100 = "NVIDIA H100 80GB HBM3"


def tuned_tile(shape: Shape = SHAPE, tile: Tile = TILE) -> TunedTile:
    return TunedTile(shape=shape, tile=tile, work="paged_decode", ms=0.1, rule_ms=0.2)


def card(*tiles: TunedTile, triton: str = "3.6") -> Card:
    return Card(card=H100, triton=triton, torch="2.11.0", date_utc="2026-01-01", tiles=list(tiles))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_card_finds_what_was_timed_on_it_with_its_triton(tmp_path: Path) -> None:
    tool.keep(card(tuned_tile()), tmp_path)
    assert tiles_of(H100, "3.6.0", tmp_path) == {SHAPE: TILE}
    assert tiles_of(H100, "3.7.1", tmp_path) == {}
    assert tiles_of("NVIDIA A100", "3.6.0", tmp_path) == {}


def test_names() -> None:
    assert file_name(H100) == "nvidia-h100-80gb-hbm3.json"
    assert (minor("3.6.0"), minor("3.7.1+git1")) == ("3.6", "3.7")


def test_what_is_shipped_can_be_read() -> None:
    for path in CARDS.glob("*.json"):
        assert file_name(read_card(path).card) == path.name


def damage(**changes: object) -> Callable[[dict], None]:
    return lambda found: found["tiles"][0]["tile"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage(block_m=48), "block_m 48"),
        (damage(block_n=8), "block_n 8"),
        (damage(num_warps=3), "3 warps"),
        (damage(num_stages=0), "num_stages 0"),
        (damage(max_registers=512), "max_registers 512"),
        (damage(num_stages="many"), "is no file of tiles"),
        (lambda found: found.pop("triton"), "is no file of tiles"),
        (lambda found: found.update(colour="red"), "is no file of tiles"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    found = json.loads(msgspec.json.encode(card(tuned_tile())))
    change(found)
    (tmp_path / file_name(H100)).write_text(json.dumps(found))
    with pytest.raises(KvtoolError, match=message) as raised:
        tiles_of(H100, "3.6.0", tmp_path)
    assert "\n" not in str(raised.value)


def test_a_later_run_keeps_the_shapes_it_had_no_time_for(tmp_path: Path) -> None:
    other = replace(SHAPE, rows=16)
    tool.keep(card(tuned_tile(), tuned_tile(other)), tmp_path)
    faster = replace(TILE, num_stages=2)
    tool.keep(card(tuned_tile(tile=faster)), tmp_path)
    assert tiles_of(H100, "3.6.0", tmp_path) == {SHAPE: faster, other: TILE}
    tool.keep(card(tuned_tile(), triton="3.7"), tmp_path)  # another compiler: nothing of the old one holds
    assert tiles_of(H100, "3.7.1", tmp_path) == {SHAPE: TILE}


def test_a_tile_of_the_rules_has_no_fault() -> None:
    assert TILE.fault is None
    assert set(asdict(TILE)) >= set(tuning.STEPS)
    assert "programs" in tuning.settings_of(SHAPE)
    assert "programs" not in tuning.settings_of(replace(SHAPE, operation="prefill"))


def test_the_grid_is_of_kernels_that_have_tiles() -> None:
    works = tool.works()
    assert len(works) == len(tool.GRID)
    assert {work.kernel for work in works} == {"paged_decode", "paged_prefill", "mla_decode"}


# --- the launch, and the search ---------------------------------------------------------------------------------------


@pytest.fixture
def work() -> KernelWork:
    model = inline_model(layers=1, heads=2, kv_heads=1, head_dim=16)
    options = KernelsOptions(
        contexts=(40,), batch_sizes=(1,), chunk_len=32, num_iters=1, dtype="fp32", device="cpu", block_sizes=(16,)
    )
    planned = plan(model, options, [CACHE_FORMATS["fp32"]], "fp32")
    return next(one for one in planned if one.part == "decode")


@pytest.fixture
def on_trial(monkeypatch: pytest.MonkeyPatch) -> list[Tile]:
    """The tiles that were put on trial, the last one last."""
    tried: list[Tile] = []

    @contextmanager
    def told(tiles: Tiles) -> Iterator[None]:
        if isinstance(tiles, Mapping):  # else it is asked for the rules' own
            tried.extend(tiles.values())
        with gpu.trying(tiles):
            yield

    monkeypatch.setattr(tuning, "trying", told)
    monkeypatch.setattr(tuning, "ROUNDS", 1)
    monkeypatch.setattr(tuning, "STEPS", {"num_stages": (2, 3, 4), "block_n": (16, 32, 64)})
    return tried


def search(work: KernelWork, on_trial: list[Tile], cost: Callable[[Tile], float], **given: object) -> TunedTile | None:
    """With a clock that says what a call with the tile on trial costs."""

    def timer(call: Callable[[], object]) -> float:
        call()
        return cost(on_trial[-1])

    settings = {"stream_bytes": work.kv_bytes, "capture": False, "go_on": lambda: True} | given
    return tuning.tune(work, CPU, timer=timer, **settings)


@interpreted
def test_the_fastest_tile_is_found_one_setting_after_another(work: KernelWork, on_trial: list[Tile]) -> None:
    found = search(work, on_trial, lambda tile: 1.0 + abs(tile.num_stages - 4) + abs(tile.block_n - 32) / 16)
    assert found is not None
    assert (found.tile.num_stages, found.tile.block_n) == (4, 32)
    assert found.ms < found.rule_ms
    assert (found.shape.operation, found.shape.head_dim, found.shape.page) == ("decode", 16, 16)


@interpreted
def test_the_tile_of_the_rules_stays_where_none_is_clearly_faster(work: KernelWork, on_trial: list[Tile]) -> None:
    assert search(work, on_trial, lambda tile: 1.0 - 0.001 * tile.num_stages) is None


@interpreted
def test_a_tile_with_another_answer_is_out(
    work: KernelWork, on_trial: list[Tile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 32 keys are made to answer zeros, and would be the fastest."""
    from kvtool.kernels.triton import attention

    decode = attention.decode

    def wrong(*arguments: object) -> torch.Tensor:
        out = decode(*arguments)
        return torch.zeros_like(out) if on_trial and on_trial[-1].block_n == 32 else out

    monkeypatch.setattr(attention, "decode", wrong)
    found = search(work, on_trial, lambda tile: 0.1 if tile.block_n == 32 else 1.0 / tile.num_stages)
    assert found is not None
    assert found.tile.block_n != 32


@interpreted
def test_one_that_does_not_compile_is_out(
    work: KernelWork, on_trial: list[Tile], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvtool.kernels.triton import attention

    decode = attention.decode

    def refusing(*arguments: object) -> torch.Tensor:
        if on_trial and on_trial[-1].num_stages > 2:
            raise RuntimeError("out of resource: shared memory")
        return decode(*arguments)

    monkeypatch.setattr(attention, "decode", refusing)
    found = search(work, on_trial, lambda tile: 1.0 / tile.num_stages / tile.block_n)
    assert found is not None
    assert (found.tile.num_stages, found.tile.block_n) == (2, 64)


@interpreted
def test_no_tile_is_tried_without_time(work: KernelWork, on_trial: list[Tile]) -> None:
    assert search(work, on_trial, lambda tile: 1.0 / tile.block_n, go_on=lambda: False) is None
    assert on_trial == []


@interpreted
def test_tiles_on_trial_are_what_launches_take_and_only_inside() -> None:
    assert gpu.target(CPU).tuned == {}
    with gpu.trying({SHAPE: TILE}):
        assert gpu.target(CPU).tuned == {SHAPE: TILE}
        with pytest.raises(ZeroDivisionError), gpu.trying({}):
            raise ZeroDivisionError
        assert gpu.target(CPU).tuned == {SHAPE: TILE}
    assert gpu.target(CPU).tuned == {}
