"""The inputs of measured cases: which tell cases apart, which are told once, and a title of what ran on what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


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
