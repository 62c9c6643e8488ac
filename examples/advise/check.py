"""Answers of `kvtool advise` that a CPU can check, beside what the commands that it prints measure.

python examples/advise/check.py        measures this machine, asks, runs the commands, writes checks.json: two minutes
python examples/advise/check.py 2      the second of them alone
python examples/advise/check.py show   prints checks.json again

The advice gets a short benchmark of the machine as its profile. Its numbers are of floors, so that a measurement is to
fall on the same side of the number that decided, and not to equal it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

MODEL = "smollm2-135m"
CHECKS = Path(__file__).with_name("checks.json")
Document = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One answer. `advised` and `measured` are in `unit`; `against` decided, None where there was no choice."""

    situation: str
    question: str
    answer: str
    advised: float
    measured: float
    against: float | None
    unit: str
    command: str

    @property
    def holds(self) -> bool:
        """Whether the measurement gives the answer that was given."""
        return self.against is None or (self.measured >= self.against) == (self.advised >= self.against)


def request_ms(document: Document) -> float:
    """Of one request alone, from submission to its last token."""
    (case,) = [case for case in document["cases"] if case["part"] == "latency"]
    return float(case["metrics"]["e2e_ms"]["p50"])


def times_without(document: Document) -> float:
    """A request's time without a cache, by its time with one in the same iteration."""
    seconds = {case["inputs"]["arm"]: [sample["e2e_s"] for sample in case["samples"]] for case in document["cases"]}
    return median(
        float(without / cached) for without, cached in zip(seconds["no_cache"], seconds["paged"], strict=True)
    )


def prefill_spared(document: Document) -> float:
    """The part of the time to first tokens that hits save."""
    (case,) = document["cases"]
    ttft_s = {
        arm: median(sample["ttft_s"] for sample in case["samples"] if sample["arm"] == arm)
        for arm in ("cached", "uncached")
    }
    return float(1 - ttft_s["cached"] / ttft_s["uncached"])


Asked = tuple[str, str, str, int, Callable[[Document], float]]
ASKED: tuple[Asked, ...] = (
    # situation, question, the question whose command measures it, iterations, and what of them is the number
    ("--input-len 128 --output-len 16", "Is a cache needed?", "Is a cache needed?", 2, times_without),
    ("--input-len 320 --output-len 1", "Is a cache needed?", "Is a cache needed?", 9, times_without),
    ("--input-len 128 --output-len 16", "How are the cards used?", "Disaggregate?", 3, request_ms),
    (
        "--workload translation --input-len 320 --output-len 2 --num-prompts 8",
        "A prefix cache?",
        "A prefix cache?",
        2,
        prefill_spared,
    ),
)


def kvtool(*words: str) -> Document:
    """The document of a command."""
    done = subprocess.run([sys.executable, "-m", "kvtool", *words, "--json"], stdout=subprocess.PIPE, check=True)
    found: Document = json.loads(done.stdout)
    return found


def checks(folder: Path, asked: Iterable[Asked]) -> Iterator[Check]:
    """Of every situation: the advice by a profile of this machine, and its command run, of some iterations."""
    profile = folder / "bench.json"
    measured = kvtool(
        "bench", MODEL, "--parts", "latency", "--input-len", "320", "--batch-size", "1", "--num-iters", "2"
    )
    profile.write_text(json.dumps(measured))
    for situation, question, by, iters, number in asked:
        advice = kvtool("advise", MODEL, "--profile", str(profile), *shlex.split(situation))
        decisions = {one["question"]: one for one in advice["decisions"]}
        decision, command = decisions[question], decisions[by]["command"]
        alone = () if "--batch-size" in command else ("--batch-size", "1")
        document = kvtool(*shlex.split(command)[1:], *alone, "--num-iters", str(iters))
        yield Check(
            situation=situation,
            question=question,
            answer=decision["answer"],
            advised=decision["value"],
            measured=number(document),
            against=decision["threshold"],
            unit=decision["unit"],
            command=command,
        )


def lines(found: list[Check]) -> Iterator[str]:
    """A row of Markdown each, as the page has them."""
    yield "| situation | question | answer | advised | measured | |"
    yield "|---|---|---|---|---|---|"
    for one in found:
        numbers = f"{one.advised:.3g} | {one.measured:.3g} | {one.unit}"
        yield f"| `{one.situation}` | {one.question} | {one.answer} | {numbers} |"


def read() -> list[Check]:
    """Those that were written."""
    return [Check(**one) for one in json.loads(CHECKS.read_text())]


def measure(numbers: list[int]) -> None:
    """Those of ASKED, from 1 on; the others stay as they were written."""
    found = dict(enumerate(read(), 1)) if CHECKS.exists() else {}
    with tempfile.TemporaryDirectory() as made:
        found |= zip(numbers, checks(Path(made), [ASKED[number - 1] for number in numbers]), strict=True)
    CHECKS.write_text(json.dumps([asdict(found[number]) for number in sorted(found)], indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["show"]:
        measure([int(number) for number in sys.argv[1:]] or list(range(1, 1 + len(ASKED))))
    print("\n".join(lines(read())))
    sys.exit(not all(one.holds for one in read()))
