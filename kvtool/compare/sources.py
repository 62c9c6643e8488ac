"""What the arguments of `kvtool compare` are: bench documents, or models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kvtool.compare.foreign.aiperf import FILE_NAME as AIPERF_NAME
from kvtool.compare.foreign.foreign import is_foreign, read_foreign
from kvtool.results import BenchDocument, read_document
from kvtool.system.errors import KvtoolError
from kvtool.system.files import refuse_deep

if TYPE_CHECKING:
    from kvtool.compare.documents import NamedDocument

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
    """The bench document in a file, or in a folder that `kvtool bench --out` wrote, or another tool's result. Raises
    KvtoolError."""
    from kvtool.compare.documents import NamedDocument

    path = _document_path(name) or Path(name)
    found = _decoded(path)
    if found is not None and is_foreign(found):
        return _foreign_document(name, path, found)
    document = read_document(path, BenchDocument)
    for where, number in _numbers(msgspec.to_builtins(document.cases), "cases"):
        if not (math.isfinite(number) and 0 <= number <= _LARGEST) and not where.startswith("cases.prefix."):
            raise KvtoolError(f"{path} has {where} {number}: a measurement is not below 0 nor above {_LARGEST:g}")
    return NamedDocument(name, document)


def _document_path(name: str) -> Path | None:
    """The file of a result document, told from a model's config.json by its schema; None for anything else."""
    path = Path(name)
    if path.is_dir():
        inside = [path / name for name in ("bench.json", AIPERF_NAME)]
        path = next((file for file in inside if file.is_file()), inside[0])
    found = _decoded(path)
    ours = isinstance(found, dict) and str(found.get("schema", "")).startswith("kvtool.")
    return path if ours or is_foreign(found) else None


def _decoded(path: Path) -> Any:
    """What a .json file holds; None for anything else."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        found = msgspec.json.decode(path.read_bytes())
        refuse_deep(found, path)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, KvtoolError):
        return None
    return found


def _foreign_document(name: str, path: Path, found: Any) -> NamedDocument:
    """What another tool wrote, as a document without an environment. Raises KvtoolError."""
    from kvtool.compare.documents import NamedDocument

    foreign = read_foreign(found, str(path))
    document = BenchDocument(environment={}, definitions={}, assumptions=list(foreign.remarks), cases=foreign.cases)
    return NamedDocument(name, document, tuple(f"as {foreign.tool} writes it: {one}" for one in foreign.remarks))


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
