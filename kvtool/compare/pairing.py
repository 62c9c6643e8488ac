"""Which case of one document belongs to which of another.

Cases pair when they ran the same work. A setting that is one value throughout one document and another throughout the
other (the dtype, the page size, the model) is what is being compared: it parts no pair, and is reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.results import Case

Value = str | int | float | bool | None

REPEATS = frozenset({"seed", "num_iters", "num_iters_warmup"})
WORK = frozenset(
    {"input_len", "output_len", "batch_size", "context", "prefix_len", "hit_rate", "concurrency", "request_rate"}
)


@dataclass(frozen=True, slots=True)
class Pairing:
    """`differing` maps an input to its value in either document, for inputs that differ between pairs."""

    pairs: list[tuple[Case, Case]]
    differing: dict[str, tuple[Value, Value]]
    only_a: list[Case]
    only_b: list[Case]


def pair_cases(a: Sequence[Case], b: Sequence[Case]) -> Pairing:
    """Pairs in the order of `a`. Cases with equal inputs, as repeats are, pair in their order."""
    names = sorted(_names(a) & _names(b))  # an input that only newer documents tell is no difference
    settings = _differing_settings(a, b, names)
    keys = [name for name in names if name not in settings and name not in REPEATS]
    waiting: dict[tuple[object, ...], list[Case]] = defaultdict(list)
    for case in b:
        waiting[_key(case, keys)].append(case)
    pairs: list[tuple[Case, Case]] = []
    only_a: list[Case] = []
    for case in a:
        partners = waiting[_key(case, keys)]
        if partners:
            pairs.append((case, partners.pop(0)))
        else:
            only_a.append(case)
    return Pairing(pairs, _differing(pairs, names), only_a, only_b=[case for left in waiting.values() for case in left])


def _names(cases: Sequence[Case]) -> set[str]:
    return {name for case in cases for name in case.inputs}


def _key(case: Case, names: Sequence[str]) -> tuple[object, ...]:
    return (case.part, *(case.inputs.get(name) for name in names))


def _differing_settings(a: Sequence[Case], b: Sequence[Case], names: Sequence[str]) -> set[str]:
    settings = set()
    for name in names:
        in_a, in_b = ({case.inputs.get(name) for case in cases} for cases in (a, b))
        if name not in WORK and len(in_a) == len(in_b) == 1 and in_a != in_b:
            settings.add(name)
    return settings


def _differing(pairs: Sequence[tuple[Case, Case]], names: Sequence[str]) -> dict[str, tuple[Value, Value]]:
    return {
        name: (a.inputs.get(name), b.inputs.get(name))
        for a, b in reversed(pairs)
        for name in names
        if a.inputs.get(name) != b.inputs.get(name)
    }
