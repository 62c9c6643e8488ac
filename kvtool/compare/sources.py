"""What the arguments of `kvtool compare` are: bench documents, or models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kvtool.compare.documents import NamedDocument
from kvtool.errors import KvtoolError
from kvtool.results import BenchDocument, read_document

# Far beyond any measurement, and far from what overflows a product of a few of them.
_LARGEST = 1e18


def are_documents(names: Sequence[str]) -> bool:
    """Whether all are bench documents (True) or none is (False). Raises KvtoolError for a mix, or fewer than two."""
    if len(names) < 2:
        raise KvtoolError(
            f"compare needs two or more models or bench documents, not {len(names)}; one model compares by --engine"
            " vllm==0.25,vllm==0.26"
        )
    documents = [name for name in names if _document_path(name) is not None]
    if documents and len(documents) < len(names):
        other = next(name for name in names if name not in documents)
        is_not = "is not" if Path(other).exists() or not other.endswith(".json") else "does not exist"
        raise KvtoolError(f"{documents[0]} is a bench document, {other} {is_not}: name only documents, or only models")
    return bool(documents)


def read_bench(name: str) -> NamedDocument:
    """The bench document in a file, or in a folder that `kvtool bench --out` wrote. Raises KvtoolError."""
    path = _document_path(name) or Path(name)
    document = read_document(path, BenchDocument)
    for where, number in _numbers(msgspec.to_builtins(document.cases), "cases"):
        if not (math.isfinite(number) and 0 <= number <= _LARGEST) and not where.startswith("cases.prefix."):
            raise KvtoolError(f"{path} has {where} {number}: a measurement is not below 0 nor above {_LARGEST:g}")
    return NamedDocument(name, document)


def _document_path(name: str) -> Path | None:
    """The file of a result document, told from a model's config.json by its schema; None for anything else."""
    path = Path(name)
    if path.is_dir():
        path = path / "bench.json"
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return path if isinstance(found, dict) and str(found.get("schema", "")).startswith("kvtool.") else None


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """Every number of nested builtins with the names of the keys above it."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key != "inputs":
                yield from _numbers(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, where)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, value
