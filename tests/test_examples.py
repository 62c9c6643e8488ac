"""The examples run as they stand, and print what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvtool.cache import EVICTION

EXAMPLES = Path(__file__).parents[1] / "examples"
TESTED = {"how_many_users.py", "policies.py", "pools.py", "shared_prompt.py", "transformers_generate.py"}
NEEDS_THE_NETWORK = {"smollm2_weights.py"}


def run(name: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == TESTED | NEEDS_THE_NETWORK


def test_every_folder_of_scripts_has_its_tests() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/*.py")}
    assert folders == {
        path.stem.removeprefix("test_") for path in Path(__file__).with_name("examples").glob("test_*.py")
    }


def test_how_many_users_fit() -> None:
    lines = run("how_many_users.py")
    users = {tuple(line.split()[:2]): int(line.split()[-2]) for line in lines}
    assert len(users) == 8
    for model in {model for model, _ in users}:
        assert users[model, "fp8"] >= 2 * users[model, "bf16"] > 0


def test_policies_are_set_side_by_side() -> None:
    """A page takes its 64 bytes of tokens, and well under 300 with all that finds and orders it."""
    lines = run("policies.py", "1024")
    rows = [line.split() for line in lines if line.startswith(("hashed", "radix"))]
    assert [row[1] for row in rows if row[0] == "radix"] == list(EVICTION)
    assert all(len(row) == 6 and float(row[2]) > 0 for row in rows)
    assert all(30 < float(row[5]) < 300 for row in rows)


def test_a_pool_takes_what_is_predicted_and_the_process_grows_by_as_much() -> None:
    """In a process of its own: in one that freed memory before, a pool takes that."""
    _, *lines = run("pools.py")
    rows = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in lines}
    assert rows["bf16"][0] == 90.0  # 30 layers x K and V x 3 heads x 64 x 2 bytes x 4,096 tokens, in MiB
    for predicted, held, grown, share in rows.values():
        assert predicted == held == pytest.approx(grown, rel=0.05)
        assert share == pytest.approx(predicted / 90.0, abs=0.05)


def test_shared_prompt_shares_the_two_whole_pages() -> None:
    first, second, pool, *_ = run("shared_prompt.py")
    assert first.endswith("in pages [0, 1, 2, 3], 0 found in the cache")
    assert second.endswith("in pages [0, 1, 4, 5], 32 found in the cache")
    assert pool.startswith("8 pages, 4 free")


def test_transformers_generate_measures_both() -> None:
    settings = ("--input-len", "16", "--batch-size", "1", "--output-len", "2", "--rounds", "1", "--threads", "1")
    row = run("transformers_generate.py", *settings)[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["16", "1"]
    assert all(float(cell.rstrip("x")) >= 0 for cell in cells)


def test_smollm2_weights_takes_a_folder() -> None:
    assert "folder" in run("smollm2_weights.py", "--help")[0]
