"""What reports of measured cases share: which inputs tell cases apart, which are told once, and flat rows for CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from kvtool.results import Struct


class WithInputs(Protocol):
    """A case of any document."""

    @property
    def inputs(self) -> dict[str, str | int | float | bool | None]: ...


def varying_inputs(cases: Sequence[WithInputs], keys: Sequence[str]) -> tuple[str, ...]:
    """Those of `keys` that tell these cases apart."""
    return tuple(key for key in keys if len({case.inputs.get(key) for case in cases}) > 1)


def shared_inputs(cases: Sequence[WithInputs], keys: Sequence[str]) -> str:
    """Those of `keys` that all cases have in common, in one line."""
    told = []
    for key in keys:
        values = {case.inputs.get(key) for case in cases}
        if len(values) == 1 and (value := values.pop()) is not None:
            told.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(told)


def case_title(command: str, cases: Sequence[WithInputs], environment: dict[str, Any]) -> str:
    """`kvtool bench: smollm2-135m on Xeon`: every model that ran, and the processor or GPU."""
    models = sorted({str(case.inputs.get("model")) for case in cases if case.inputs.get("model")})
    device = environment.get("gpu") or environment.get("cpu") or environment.get("device")
    return f"kvtool {command}: {', '.join(models) or 'no case'}" + (f" on {device}" if device else "")


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
