"""The tree stays one that a reader can hold: small folders, short files and functions, few parameters, no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kvtool"
JIT = PACKAGE / "kernels" / "triton" / "jit"
MOST_ENTRIES, MOST_ENTRIES_CATALOG = 20, 26
MOST_FILE_LINES, MOST_README_LINES = 350, 200
MOST_FUNCTION_LINES, MOST_PARAMETERS = 60, 12
MEDIAN_FUNCTION_LINES, P95_FUNCTION_LINES = 8, 24

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[Path]:
    return (path for path in PACKAGE.rglob("*.py"))


def functions() -> Iterator[tuple[str, Function]]:
    """Every function outside jit code, with where it stands."""
    for path in sources():
        if JIT in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines_of(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def parameters_of(node: Function) -> int:
    given = node.args
    return len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)


def test_a_folder_is_read_at_a_glance() -> None:
    for folder in {path.parent for path in sources()}:
        entries = [entry for entry in folder.iterdir() if entry.name != "__pycache__"]
        most = MOST_ENTRIES_CATALOG if folder == PACKAGE / "catalog" else MOST_ENTRIES
        assert len(entries) <= most, f"{folder.relative_to(ROOT)} has {len(entries)} entries"


def test_a_file_tells_one_story() -> None:
    assert [str(path) for path in sources() if len(path.read_text().splitlines()) > MOST_FILE_LINES] == []
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_README_LINES


def test_every_file_says_what_it_is() -> None:
    silent = [str(path.relative_to(ROOT)) for path in sources() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent in ([], ["kvtool/__init__.py"])


def test_a_function_fits_a_screen() -> None:
    lengths = {where: lines_of(node) for where, node in functions()}
    assert {where: length for where, length in lengths.items() if length > MOST_FUNCTION_LINES} == {}
    assert median(lengths.values()) <= MEDIAN_FUNCTION_LINES
    assert quantiles(lengths.values(), n=100)[94] <= P95_FUNCTION_LINES


def test_a_call_can_be_read() -> None:
    counts = {where: parameters_of(node) for where, node in functions()}
    assert {where: count for where, count in counts.items() if count > MOST_PARAMETERS} == {}


def test_no_file_imports_itself_in_a_circle() -> None:
    """Imports for type checkers alone do not count: nothing runs in a circle there."""
    graph = grimp.build_graph("kvtool", exclude_type_checking_imports=True, cache_dir=None)
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert list(circles(arrows)) == []


def circles(arrows: dict[str, set[str]]) -> Iterator[list[str]]:
    """The groups of modules that reach each other (Tarjan's strongly connected components of two or more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(arrows[module]):
            if other not in index:
                yield from visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            found = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(found) > 1:
                yield found

    for module in sorted(arrows):
        if module not in index:
            yield from visit(module)


def test_a_circle_is_seen() -> None:
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()})) == [["a", "b", "c"]]
    assert list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []
