from __future__ import annotations

import copy
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtool.compare.documents import compare_documents, regressions
from kvtool.compare.sources import are_documents, read_bench
from kvtool.report.compare.compare import print_compare
from kvtool.report.terminal import Terminal
from kvtool.results import CompareDocument, encode
from kvtool.system.errors import KvtoolError
from tests.compare.example import document

BENCH = encode(document(input_lens=(128,)))
odd_values = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3), st.just([]), st.just({}),
)  # fmt: skip


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, item in items for deeper in paths_in(item, (*path, key)))]


PATHS = paths_in(json.loads(BENCH))[1:]


def mutate(path: tuple[Any, ...], value: Any, delete: bool) -> bytes:
    root = copy.deepcopy(json.loads(BENCH))
    holder = root
    for key in path[:-1]:
        holder = holder[key]
    if delete:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return json.dumps(root).encode()


def compare(base: Path, other: Path) -> CompareDocument:
    first, second = read_bench(str(base)), read_bench(str(other))
    return compare_documents(first, [second])


def show(document: CompareDocument) -> None:
    """Everything that is done with a comparison, the files apart."""
    encode(document)
    print_compare(document, Terminal(file=StringIO(), width=80))
    regressions(document.rows, limit=0.05)


def refusal(call: Callable[[Any], object], argument: Any) -> str:
    """The message of the KvtoolError that the call raises, empty if it goes well."""
    try:
        call(argument)
    except KvtoolError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), value=odd_values, delete=st.booleans())
def test_a_mutated_document_is_compared_or_refused_in_one_line(
    tmp_path: Path, path: tuple[Any, ...], value: Any, delete: bool
) -> None:
    base, other = tmp_path / "base.json", tmp_path / "other.json"
    base.write_bytes(BENCH)
    other.write_bytes(mutate(path, value, delete))
    for order in ((base, other), (other, base)):
        assert "\n" not in refusal(lambda paths: show(compare(*paths)), order)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, len(BENCH)), junk=st.binary(max_size=4))
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, cut: int, junk: bytes) -> None:
    path = tmp_path / "bench.json"
    path.write_bytes(BENCH[:cut] + junk)
    message = refusal(lambda path: read_bench(str(path)), path)
    assert "\n" not in message
    assert message == "" or str(path) in message


def test_documents_are_told_from_models_by_their_schema(tmp_path: Path) -> None:
    bench, config = tmp_path / "bench.json", tmp_path / "config.json"
    bench.write_bytes(BENCH)
    config.write_text('{"model_type": "llama"}')
    assert are_documents([str(bench), str(bench)])
    assert are_documents([str(bench), str(tmp_path)]), "a folder that bench wrote stands for its document"
    assert not are_documents([str(config), "llama-3.1-8b"])
    assert read_bench(str(tmp_path)).name == str(tmp_path)


def test_mixed_or_too_few_arguments_are_refused(tmp_path: Path) -> None:
    bench = tmp_path / "bench.json"
    bench.write_bytes(BENCH)
    with pytest.raises(KvtoolError, match=r"is a bench document, llama-3\.1-8b is not"):
        are_documents([str(bench), "llama-3.1-8b"])
    with pytest.raises(KvtoolError, match=r"missing\.json does not exist"):
        are_documents([str(bench), str(tmp_path / "missing.json")])
    with pytest.raises(KvtoolError, match="two or more"):
        are_documents(["llama-3.1-8b"])


def test_other_documents_and_impossible_measurements_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "size.json"
    path.write_text('{"schema": "kvtool.size/1", "rows": [], "assumptions": []}')
    with pytest.raises(KvtoolError, match=r"is not a kvtool.bench/1 document \(its schema is 'kvtool.size/1'\)"):
        read_bench(str(path))
    path.write_bytes(mutate(("cases", 0, "samples", 0, "ttft_s"), -1.0, delete=False))
    with pytest.raises(KvtoolError, match=r"cases.samples.ttft_s -1.0"):
        read_bench(str(path))
