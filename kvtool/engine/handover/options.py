"""What `--disaggregate` says: how many engines prefill and decode, how they are shared, and how pages go over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.units import split_list

TRANSFERS = ("shm", "tcp")
BY = ("request", "layer")
_COUNTS = ("prefill", "decode", "prefill-tp", "decode-tp")
_NAMES = {"transfer": TRANSFERS, "by": BY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Disaggregation:
    """`prefill` engines of `prefill_tp` ranks each, `decode` engines of `decode_tp`. Pages go over through memory that
    both see (shm) or TCP, when a prompt is whole or layer by layer. TCP is bound to `listen` alone."""

    prefill: int = 1
    decode: int = 1
    prefill_tp: int = 1
    decode_tp: int = 1
    transfer: str = "shm"
    by: str = "request"
    listen: str = "127.0.0.1"

    def __post_init__(self) -> None:
        for name in ("prefill", "decode", "prefill_tp", "decode_tp"):
            if not 1 <= getattr(self, name) <= 64:
                raise KvtoolError(f"--disaggregate: {name.replace('_', '-')} {getattr(self, name)} is not from 1 to 64")
        if self.by == "layer" and self.prefill_tp > 1:
            raise KvtoolError("--disaggregate: by=layer needs prefill-tp=1, since ranks export a prompt that is whole")

    def __str__(self) -> str:
        engines = f"prefill={self.prefill},decode={self.decode}"
        shared = "".join(
            f",{name}-tp={degree}"
            for name, degree in (("prefill", self.prefill_tp), ("decode", self.decode_tp))
            if degree > 1
        )
        return f"{engines}{shared},transfer={self.transfer},by={self.by}"


def parse_disaggregation(text: str) -> Disaggregation:
    """`prefill=1,decode=1`, and any of prefill-tp, decode-tp, transfer, by, listen. Raises KvtoolError."""
    given: dict[str, Any] = {}
    for item in split_list(text):
        name, _, value = item.partition("=")
        if name in _COUNTS:
            if not (value.isascii() and value.isdigit() and len(value) < 4):
                raise KvtoolError(f"--disaggregate {item!r}: write {name}=1")
            given[name.replace("-", "_")] = int(value)
        elif name in _NAMES:
            if value not in _NAMES[name]:
                raise KvtoolError(f"--disaggregate {item!r}: {name} is one of {', '.join(_NAMES[name])}")
            given[name] = value
        elif name == "listen" and value:
            given[name] = value
        else:
            known = (*_COUNTS, *_NAMES, "listen")
            raise KvtoolError(f"--disaggregate {item!r} is none of {', '.join(known)}{did_you_mean(name, known)}")
    if not {"prefill", "decode"} <= given.keys():
        raise KvtoolError(f"--disaggregate {text!r}: say how many engines of each, as prefill=1,decode=1")
    return Disaggregation(**given)
