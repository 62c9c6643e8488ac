"""The table of flags: it covers what an engine is started with, and what it writes it reads."""

from __future__ import annotations

from dataclasses import fields

import pytest
import typer.main

from kvtool.cli.app import app
from kvtool.sizing.engines.flags import FLAGS, Flag
from kvtool.sizing.engines.options import EngineOptions
from kvtool.system.errors import KvtoolError
from kvtool.verify.facts import LogFacts
from kvtool.verify.inputs import started

# The engine itself and the rules to plan by, its layout and card, a value -1, and what its weights are in.
NO_FLAG = {"name", "version", "rules", "parallel", "gpu", "auto_fit", "dtype"}
VALUES: dict[str, tuple[object, str]] = {  # another value than the default of each kind, and how a log tells it
    "count": (3, "3"),
    "size": (5 << 30, str(5 << 30)),
    "fraction": (0.375, "0.375"),
    "name": ("align", "'align'"),
    "dtype": ("fp8", "'fp8'"),
}
SPELLED = [(flag, engine) for flag in FLAGS for engine in ("vllm", "sglang") if flag.spelling(engine)]


def test_every_field_has_one_row() -> None:
    assert sorted(flag.field for flag in FLAGS) == sorted({field.name for field in fields(EngineOptions)} - NO_FLAG)


def test_a_switch_is_a_field_that_is_true_or_false() -> None:
    switches = {flag.field for flag in FLAGS if flag.kind == "switch"}
    assert switches == {field.name for field in fields(EngineOptions) if "bool" in str(field.type)} - NO_FLAG


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_no_engine_has_two_flags_of_a_name(engine: str) -> None:
    names = [name for flag in FLAGS for name in flag.log_names(engine)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.field)
def test_size_has_an_option_for_each(flag: Flag) -> None:
    options = typer.main.get_group(app).commands["size"].params
    assert [p for p in options if flag.option in (*p.opts, *p.secondary_opts)]


@pytest.mark.parametrize(("flag", "engine"), SPELLED, ids=lambda value: getattr(value, "field", value))
def test_what_a_command_says_a_log_tells_back(flag: Flag, engine: str) -> None:
    spelling = str(flag.spelling(engine))
    if flag.kind == "switch":
        value, logged = False, "True" if spelling.startswith(("--disable-", "--enforce-")) else "False"
        assert flag.words(engine, value) == [spelling]
    else:
        value, logged = VALUES[flag.kind]  # type: ignore[assignment]
        assert flag.words(engine, value) == [spelling, str(value)]
    facts = LogFacts(engine=engine, model="llama-3.1-8b", flags={flag.log_names(engine)[0]: logged.strip("'")})
    options = started(facts, model=None, gpu=None, given={}, models_path=None).options
    assert getattr(options, flag.field) == value


def test_a_command_says_a_default_only_where_the_engine_s_own_may_differ() -> None:
    said = {flag.field for flag, engine in SPELLED if flag.words(engine, flag.default)}
    assert said == {"kv_cache_dtype"}


def test_a_value_of_another_kind_is_refused_by_name() -> None:
    facts = LogFacts(engine="sglang", model="llama-3.1-8b", flags={"max_total_tokens": "some"})
    with pytest.raises(KvtoolError, match="max_total_tokens 'some' is not a whole number"):
        started(facts, model=None, gpu=None, given={}, models_path=None)


def test_how_a_difference_is_explained() -> None:
    by_field = {flag.field: flag for flag in FLAGS}
    assert by_field["max_num_seqs"].said(8) == "--max-num-seqs 8"
    assert by_field["async_scheduling"].said(False) == "--no-async-scheduling"
    assert by_field["async_scheduling"].said(True) == "--async-scheduling"
    assert by_field["hybrid_kv_cache_manager"].said(False) == "--disable-hybrid-kv-cache-manager"
