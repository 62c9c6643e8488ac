"""YAML as a user writes it: plain data, no aliases, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import yaml

from kvtool.system.errors import KvtoolError
from kvtool.system.files import DEEPEST, read_bytes, too_deep

_MAX_INTEGER = 1 << 48


def read_yaml(path: Path, *, at_most: int | None = None, what: str = "file") -> object:
    """The content of a YAML or JSON file, as `read_bytes` reads it. Raises KvtoolError.

    Tags (`!!timestamp x`) are refused, as no key of kvtool's needs one, and aliases: a few lines of them stand for
    billions of values, or for a value that contains itself. So is what is nested deep, on which libyaml's loader would
    run out of stack.
    """
    data = read_bytes(path, at_most=at_most, what=what)
    try:
        _refuse_odd_events(data, path)
        return yaml.load(data, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise KvtoolError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error


def _refuse_odd_events(data: bytes, path: Path) -> None:
    depth = 0
    for event in yaml.parse(data, Loader=yaml.CSafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            name = (event.anchor or "")[:40]
            raise KvtoolError(f"{path}, line {line}: alias *{name} is not read: write the block out")
        if tag := getattr(event, "tag", None):
            raise KvtoolError(f"{path}, line {line}: tag {tag[:60]!r} is not read: write the value alone")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise too_deep(path)


def check_numbers(value: object, where: str) -> None:
    """No size is negative or beyond reason, wherever it stands. Raises KvtoolError."""
    if isinstance(value, int) and not 0 <= value <= _MAX_INTEGER:
        raise KvtoolError(f"{where} is {_told(value)}: must be from 0 to {_MAX_INTEGER}")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        check_numbers(item, f"{where}: {_told(name)}")


def _told(value: object) -> str:
    """A value in a few words; Python refuses to write out an integer of thousands of digits."""
    return "a huge number" if isinstance(value, int) and abs(value) >> 100 else str(value)[:60]


def own_models_path() -> Path:
    """models.yaml: the top-level file of a checkout (editable installs too), or the copy inside the wheel."""
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").is_file() and (root / "models.yaml").is_file():
        return root / "models.yaml"
    return Path(__file__).with_name("models.yaml")
