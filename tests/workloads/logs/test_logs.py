"""Logs with text become traces: every form of a line, times, templates in their sandbox, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtool.system.errors import KvtoolError
from kvtool.workloads.logs.blocks import trace_of
from kvtool.workloads.logs.entries import LogEntry, is_log, read_log
from kvtool.workloads.logs.layout import plain_layout, template_layout


def entries(tmp_path: Path, *lines: object) -> list[LogEntry]:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert is_log(path.read_bytes()) or not lines
    return list(read_log(path))


def test_every_form_of_a_line(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    found = entries(
        tmp_path,
        {"prompt": "Hi", "timestamp": "2026-11-28T08:00:00Z", "session_id": 7},
        {"prompt": [1, 2], "timestamp": "2026-11-28T08:00:02+00:00", "output_tokens": 5},
        {"custom_id": "a", "body": {"messages": chat, "tools": [{"type": "function"}]}, "created": 1795852803},
        {"request": {"messages": chat, "user": "x"}, "usage": {"completion_tokens": 9}, "time": 1795852804000},
    )
    assert [(one.text, one.token_ids, one.messages) for one in found] == [
        ("Hi", None, None), (None, [1, 2], None), (None, None, chat), (None, None, chat),
    ]  # fmt: skip
    assert [one.arrival_s for one in found] == [0, 2, 3, 4]
    assert [one.session for one in found] == ["7", "", "", "x"]
    assert [one.output_tokens for one in found] == [0, 5, 0, 9]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": "no"}, "line 2: no request"),
        ({"prompt": "a", "time": "noon"}, "line 2: time 'noon'"),
        ([1], "line 2:"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(KvtoolError, match=said):
        entries(tmp_path, {"prompt": "fine"}, line)


def test_the_blocks_of_a_trace_are_prefixes() -> None:
    log = [LogEntry(line=n, token_ids=ids) for n, ids in enumerate(([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [9, 2, 3, 4]), 1)]
    found = [request.block_ids for request in trace_of(log, block_size=2, encode=None, layout=None)]
    assert found == [[0, 1, 2], [0, 1, 3], [4, 5]]
    with pytest.raises(KvtoolError, match="line 4 has text: --tokenizer"):
        list(trace_of([LogEntry(line=4, text="a")], block_size=2, encode=None, layout=None))


def folder_with(tmp_path: Path, template: str) -> Path:
    config = {"chat_template": template, "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_models_own_template_lays_a_chat_out(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ tools | tojson }}"
    layout = template_layout(folder_with(tmp_path, template))
    chat = LogEntry(line=1, messages=[{"role": "user", "content": "Hi"}], tools=[{"name": "run"}])
    assert layout(chat) == '<s>[user]Hi[{"name": "run"}]'
    assert plain_layout(chat) == '{"name": "run"}\n<user>\nHi'


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",  # out of the sandbox
        "{{ messages.append(1) }}",  # a change of what came in
        "{{ raise_exception('no system role') }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_a_template_reaches_nothing_and_its_refusal_is_one_line(tmp_path: Path, template: str) -> None:
    layout = template_layout(folder_with(tmp_path, template))
    with pytest.raises(KvtoolError, match="line 3: the chat template refuses it"):
        layout(LogEntry(line=3, messages=[{"role": "user", "content": "Hi"}]))


def test_a_template_that_does_not_parse_or_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match="has no chat template"):
        template_layout(tmp_path)
    with pytest.raises(KvtoolError, match="does not parse"):
        template_layout(folder_with(tmp_path, "{% for %}"))
