"""YAML as a user writes it: plain data, no aliases, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import yaml

from kvtool.errors import KvtoolError


def read_yaml(path: Path) -> object:
    """The content of a YAML or JSON file. Raises KvtoolError.

    Aliases are refused: a few lines of them stand for billions of values, or for a value that contains itself.
    """
    try:
        data = path.read_bytes()
        if b"*" in data and b"&" in data:
            _refuse_aliases(data, path)
        return yaml.load(data, Loader=yaml.CSafeLoader)
    except OSError as error:
        raise KvtoolError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise KvtoolError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error


def _refuse_aliases(data: bytes, path: Path) -> None:
    for event in yaml.parse(data, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark else 1
            name = (event.anchor or "")[:40]
            raise KvtoolError(f"{path}, line {line}: alias *{name} is not read: write the block out")
