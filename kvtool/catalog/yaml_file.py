"""YAML as a user writes it: plain data, no aliases, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import yaml

from kvtool.errors import KvtoolError
from kvtool.files import read_bytes
from kvtool.nesting import DEEPEST, too_deep


def read_yaml(path: Path, *, at_most: int | None = None, what: str = "file", own: bool = False) -> object:
    """The content of a YAML or JSON file, as `read_bytes` reads it. Raises KvtoolError.

    Aliases are refused: a few lines of them stand for billions of values, or for a value that contains itself. So is
    what is nested deep, on which libyaml's loader would run out of stack. A file of kvtool's `own` has neither.
    """
    data = read_bytes(path, at_most=at_most, what=what)
    try:
        if not own:
            _refuse_aliases_and_depth(data, path)
        return yaml.load(data, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise KvtoolError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error


def _refuse_aliases_and_depth(data: bytes, path: Path) -> None:
    depth = 0
    for event in yaml.parse(data, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark else 1
            name = (event.anchor or "")[:40]
            raise KvtoolError(f"{path}, line {line}: alias *{name} is not read: write the block out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise too_deep(path)
