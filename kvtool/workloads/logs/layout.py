"""How a chat becomes the one text that a model reads: the model's own template, or a plain layout that says it is one.

Templates come from files of others: they run in jinja2's sandbox, where they reach nothing of Python and change
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kvtool.system.errors import KvtoolError, one_line
from kvtool.system.files import read_bytes
from kvtool.workloads.logs.entries import LogEntry

Layout = Callable[[LogEntry], str]
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
LARGEST_TEMPLATE_BYTES = 1 << 20


class _Config(msgspec.Struct, frozen=True):
    chat_template: str | list[dict[str, str]] | None = None
    bos_token: str | dict[str, Any] | None = None
    eos_token: str | dict[str, Any] | None = None
    unk_token: str | dict[str, Any] | None = None
    pad_token: str | dict[str, Any] | None = None


def plain_layout(entry: LogEntry) -> str:
    """Each tool as JSON on a line, then each message as its role and its content."""
    tools = [json.dumps(tool, ensure_ascii=False) for tool in entry.tools]
    messages = [f"<{message.get('role', '')}>\n{_content(message)}" for message in entry.messages or []]
    return "\n".join([*tools, *messages])


def _content(message: dict[str, Any]) -> str:
    """A message's text; parts that are no text, and calls of tools, as JSON."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts = [
        part
        if isinstance(part, str)
        else str(part["text"])
        if isinstance(part, dict) and "text" in part
        else _json(part)
        for part in parts
    ]
    return "\n".join([*texts, *(_json(call) for call in message.get("tool_calls") or [])])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def template_layout(folder: Path) -> Layout:
    """The chat template of a model folder (tokenizer_config.json, or chat_template.jinja beside it).

    Raises KvtoolError for a folder without one, and the layout for a chat that the template refuses.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    config = _config(folder)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **given: json.dumps(value, ensure_ascii=False, **given)
    environment.globals["raise_exception"] = _refuse
    try:
        template = environment.from_string(_source(folder, config))
    except TemplateError as error:
        raise KvtoolError(f"{folder}: the chat template does not parse: {one_line(str(error))}") from error
    special = {name: _token(getattr(config, name)) for name in SPECIAL}

    def layout(entry: LogEntry) -> str:
        try:
            return template.render(
                messages=entry.messages, tools=entry.tools or None, add_generation_prompt=True, **special
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise KvtoolError(f"line {entry.line}: the chat template refuses it: {one_line(str(error))}") from error

    return layout


def _config(folder: Path) -> _Config:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return _Config()
    data = read_bytes(path, at_most=LARGEST_TEMPLATE_BYTES, what="tokenizer_config.json")
    try:
        return msgspec.json.decode(data, type=_Config)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KvtoolError(f"{path} is not a tokenizer's config: {error}") from error


def _source(folder: Path, config: _Config) -> str:
    """The template's text, of several the one named default."""
    beside, given = folder / "chat_template.jinja", config.chat_template
    if beside.is_file():
        return read_bytes(beside, at_most=LARGEST_TEMPLATE_BYTES, what="chat template").decode(errors="replace")
    if isinstance(given, list):
        given = next((one.get("template") for one in given if one.get("name") == "default"), None)
    if given is None:
        raise KvtoolError(f"{folder} has no chat template, and the log has chats: name a folder with the model's own")
    return given


def _token(value: str | dict[str, Any] | None) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else value or ""


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
