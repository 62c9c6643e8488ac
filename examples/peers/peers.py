"""Calculators of KV cache memory from PyPI beside kvtool, and what vLLM 0.33.0 allocates: prints README.md here.

python examples/peers/peers.py                  # the peers' answers as recorded, kvtool's worked out again
python examples/peers/peers.py --write          # into README.md
python examples/peers/peers.py --install        # install the peers into a .venv here and ask them again
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtool.catalog.hf_config import read_config
from kvtool.catalog.model import Model
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm.plan import plan
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.size import size
from kvtool.system.errors import KvtoolError
from kvtool.system.files import write_atomic
from kvtool.units import GIB, format_bytes_short, format_length

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "tests" / "data" / "vllm_configs"
CASES, ANSWERS = HERE / "cases.json", HERE / "answers.json"
PEERS = {"hf-mem": "0.5.6", "kvfit": "0.3.0", "vramscout": "0.7.0"}
ENGINE, LOGICAL = "kvtool, as vLLM", "kvtool, logical"
POOL_BYTES = 40 * GIB  # what vLLM had for the cache in every case
WITHIN = 0.01

INTRODUCTION = """\
# Calculators from PyPI beside kvtool

What one request of that many tokens takes on one H100, in the cache dtype named: as vLLM 0.33.0 allocates it, as kvtool
says, and as other calculators say. In brackets: a number over what vLLM allocates. The models are all of
`tests/data/vllm_configs`; vLLM's bytes are those of its own planning code, see [cases.json](cases.json).

Logical bytes are what the tokens take. An engine allocates more for sliding windows and recurrent state, which a
calculator may leave out on purpose. Each peer's own code ran on the model's own config.json: see [ask.py](ask.py).
`python examples/peers/peers.py` prints this page, and `--install` asks the peers again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`case` names the plan of vLLM 0.33.0 that `allocated_bytes` (for one request of max_model_len) is from."""

    case: str
    config: str
    max_model_len: int
    kv_cache_dtype: str
    allocated_bytes: int

    @property
    def model(self) -> str:
        return self.case.partition("|")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="ask the peers again, in a new environment")
    parser.add_argument("--write", action="store_true", help="write README.md here instead of printing it")
    arguments = parser.parse_args()
    if arguments.install:
        write_atomic(ANSWERS, ask_peers(HERE / ".venv"))
    text = "\n".join(page()) + "\n"
    if arguments.write:
        write_atomic(HERE / "README.md", text.encode())
    else:
        print(text, end="")


def ask_peers(environment: Path) -> bytes:
    """The peers' answers as JSON, from a new virtual environment with the pinned versions. Needs the network."""
    venv.create(environment, clear=True, with_pip=True)
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pins = [f"{name}=={version}" for name, version in PEERS.items()]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
    asked = subprocess.run([python, HERE / "ask.py", CASES, CONFIGS], check=True, stdout=subprocess.PIPE)
    return asked.stdout


def cases() -> list[Case]:
    return [Case(**case) for case in json.loads(CASES.read_text())]


def says(case: Case, answers: dict[str, Any]) -> dict[str, int | None]:
    """Bytes by column; None where it refuses the model."""
    peers = {f"{name} {version}": answers[case.case][name]["bytes"] for name, version in PEERS.items()}
    return {ENGINE: _asked(engine_bytes, case), LOGICAL: _asked(logical_bytes, case)} | peers


def _asked(count: Callable[[Model, Case], int | None], case: Case) -> int | None:
    try:
        return count(read_config(CONFIGS / case.config), case)
    except KvtoolError:
        return None


def engine_bytes(model: Model, case: Case) -> int | None:
    """One request's bytes in the plan that vLLM makes at its start; None where it would not start."""
    options = EngineOptions(name="vllm", max_model_len=case.max_model_len)
    found = plan(model, options, pool_bytes=POOL_BYTES)
    return None if found.refusal or not found.bytes_needed else max(found.bytes_needed)


def logical_bytes(model: Model, case: Case) -> int:
    """The bytes of a sequence by `kvtool size config.json --context max_model_len`."""
    options = SizeOptions(contexts=(case.max_model_len,), kv_cache_dtypes=(case.kv_cache_dtype,))
    return size(model, options=options).rows[0].kv.bytes_per_sequence


def page() -> Iterator[str]:
    answers = json.loads(ANSWERS.read_text())
    said = {case: says(case, answers) for case in cases()}
    columns = list(next(iter(said.values())))
    yield INTRODUCTION
    yield ""
    yield f"| model | tokens | cache | vLLM 0.33.0 | {' | '.join(columns)} |"
    yield f"|---|---|---|---|{'---|' * len(columns)}"
    for case, numbers in said.items():
        cells = [cell(number, case.allocated_bytes) for number in numbers.values()]
        yield (
            f"| {case.model} | {format_length(case.max_model_len)} | {case.kv_cache_dtype} "
            f"| {format_bytes_short(case.allocated_bytes)} | {' | '.join(cells)} |"
        )
    yield ""
    yield from summary(said, columns)
    yield ""
    yield from refusals(answers)


def cell(number: int | None, allocated_bytes: int) -> str:
    if number is None:
        return "refuses"
    share = "exact" if number == allocated_bytes else ratio(number / allocated_bytes)
    return f"{format_bytes_short(number)} ({share})"


def ratio(value: float) -> str:
    """`0.998x`, `1.10x`, `24.9x`."""
    digits = 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:.{digits}f}x"


def summary(said: dict[Case, dict[str, int | None]], columns: list[str]) -> Iterator[str]:
    """How each column does over all models."""
    yield f"| of {len(said)} models | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    rows: dict[str, list[str]] = {
        "refused": [],
        "exactly what vLLM allocates": [],
        "within 1 % of what vLLM allocates": [],
        "within 1 % of the logical bytes": [],
        "most above vLLM": [],
        "most below vLLM": [],
    }
    for column in columns:
        pairs = [(number, case, row[LOGICAL]) for case, row in said.items() if (number := row[column]) is not None]
        ratios = [number / case.allocated_bytes for number, case, _ in pairs]
        logical = [number / known for number, _, known in pairs if known is not None]
        cells = (
            str(len(said) - len(pairs)),
            str(ratios.count(1.0)),
            str(sum(map(near, ratios))),
            "-" if column == ENGINE else str(sum(map(near, logical))),
            ratio(max(1.0, *ratios)),
            ratio(min(1.0, *ratios)),
        )
        for row, text in zip(rows.values(), cells, strict=True):
            row.append(text)
    yield from (f"| {name} | {' | '.join(row)} |" for name, row in rows.items())


def near(value: float) -> bool:
    return abs(value - 1) <= WITHIN


def refusals(answers: dict[str, Any]) -> Iterator[str]:
    """Why a peer refuses, in its own words."""
    yield "Refused:"
    yield ""
    for case, by_peer in answers.items():
        for name, given in by_peer.items():
            if given["bytes"] is None:
                yield f"- {name}, {case.partition('|')[0]}: {given['refusal'].removeprefix(f'{name}: ')}"


if __name__ == "__main__":
    main()
