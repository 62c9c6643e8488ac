"""What `kvtool env` says of this machine."""

from __future__ import annotations

from typing import Any

from kvtool.results.document import Struct


class EnvDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.env/1"
    environment: dict[str, Any]
    roofline: dict[str, Any] | None
