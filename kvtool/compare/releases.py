"""Releases of one engine for one model: what each makes of the same start, and which changes between them matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from kvtool.catalog.model import Model
from kvtool.results import ReleaseChange, ReleaseRow, ReleasesDocument, SizeRow
from kvtool.sizing.engines.run import HISTORIES
from kvtool.sizing.engines.versions import History
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.size import size
from kvtool.system.errors import KvtoolError

TERMS = (
    *("usable_bytes", "weights_bytes", "activation_bytes", "reserve_bytes", "pool_bytes"),
    *("block_size", "bytes_per_block", "num_blocks", "blocks_per_request", "gpu_kv_cache_tokens", "max_concurrency"),
)
_OF_FIT = TERMS[:4]


def compare_releases(
    model: Model, options: SizeOptions, releases: Sequence[tuple[str, str | None]]
) -> ReleasesDocument:
    """A row for each release, and the changes between neighbours with what each alone makes of the later one. Raises
    KvtoolError for releases of different engines.
    """
    names = {name for name, _ in releases}
    if len(names) > 1 or options.engine is None:
        raise KvtoolError(f"releases of one engine compare, not of {' and '.join(sorted(names))}")
    name = names.pop()
    if name not in HISTORIES:
        raise KvtoolError(f"releases of {' or '.join(HISTORIES)} compare: {name} is planned by one set of rules")
    history = HISTORIES[name]
    sized = [_sized(model, options, version) for _, version in releases]
    changes = [
        change
        for (_, one), (_, other) in pairwise(releases)
        for change in _changes(model, options, history, one, other)
    ]
    rows = [
        ReleaseRow(
            engine=history.engine, release=version or history.modelled, standing=row.engine.standing, terms=_terms(row)
        )
        for (_, version), row in zip(releases, sized, strict=True)
    ]
    caveats = [caveat for _, version in releases if (caveat := history.caveat(version)) is not None]
    return ReleasesDocument(
        model=model.id,
        context=sized[0].engine.max_model_len or sized[0].inputs.context,
        rows=rows,
        changes=changes,
        assumptions=[*model.assumed, *caveats],
    )


def _changes(
    model: Model, options: SizeOptions, history: History[Any], one: str | None, other: str | None
) -> list[ReleaseChange]:
    """Each change between two releases, oldest first, with the terms that it alone would move under the other rules of
    the later release.
    """
    so_far, rules = history.at(min(one, other, key=history.order)), history.at(max(one, other, key=history.order))
    found = []
    for change in history.between(one, other):
        earlier = replace(rules, **{change.rule: getattr(so_far, change.rule)})
        so_far = replace(so_far, **{change.rule: change.value})
        later = replace(rules, **{change.rule: change.value})
        without, with_it = (_terms(_sized(model, options, other, rules=each)) for each in (earlier, later))
        effects = {term: [without[term], with_it[term]] for term in TERMS if without[term] != with_it[term]}
        found.append(
            ReleaseChange(since=change.since, rule=change.rule, what=change.what, source=change.source, effects=effects)
        )
    return found


def _sized(model: Model, options: SizeOptions, version: str | None, rules: object | None = None) -> SizeRow:
    assert options.engine is not None
    engine = replace(options.engine, version=version, rules=rules)
    return size(model, options=replace(options, engine=engine)).rows[0]


def _terms(row: SizeRow) -> dict[str, Any]:
    return {term: getattr(row.fit if term in _OF_FIT else row.engine, term) for term in TERMS}
