"""Results as flat rows for a CSV file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from kvtool.report.files import CsvValue
from kvtool.results import SizeRow, Struct

# What a CSV file tells of the engine that was asked for; groups and ledgers are in the JSON.
ENGINE_COLUMNS = (
    *("name", "version", "block_size", "num_blocks", "blocks_per_request", "max_concurrency"),
    *("gpu_kv_cache_tokens", "max_model_len", "refusal"),
)


def case_rows(cases: Sequence[Struct]) -> list[dict[str, Any]]:
    """One row a case under the paths of the document (`metrics.ttft_ms.p50`), lists left out."""
    rows = [dict(_flat(msgspec.to_builtins(case), "")) for case in cases]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    groups = list(dict.fromkeys(column.split(".")[0] for column in columns))
    columns.sort(key=lambda column: groups.index(column.split(".")[0]))
    # An object that is null in some rows has no column of its own: its fields stay empty there.
    parents = {column.rpartition(".")[0] for column in columns}
    parents |= {parent.rpartition(".")[0] for parent in parents}
    return [{column: row.get(column) for column in columns if column not in parents} for row in rows]


def _flat(value: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{path}{key}.")
        elif not isinstance(item, list):
            yield f"{path}{key}", item


def size_rows(rows: Iterable[SizeRow]) -> Iterator[dict[str, CsvValue]]:
    """One flat row each: the model's id and inputs under their own names, results under their group's."""
    for row in rows:
        flat: dict[str, CsvValue] = {"model": row.model.id, "attention": row.model.attention}
        flat |= msgspec.structs.asdict(row.inputs)
        for group in ("kv", "weights", "decode", "fit"):
            flat |= {f"{group}_{name}": _cell(value) for name, value in _items(getattr(row, group))}
        if row.sharing is not None:
            flat |= {f"sharing_{name}": _cell(value) for name, value in _items(row.sharing)}
        if row.engine.name is not None:
            flat |= {f"engine_{name}": _cell(getattr(row.engine, name)) for name in ENGINE_COLUMNS}
        yield flat


def _items(part: Struct) -> Iterator[tuple[str, object]]:
    yield from msgspec.structs.asdict(part).items()


def _cell(value: object) -> CsvValue:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if value is None or isinstance(value, str | int | float) else str(value)
