"""A group is one parameter of a command, and its options are the command's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from kvtool.cli.flags.engine import EngineFlags, EngineMemory
from kvtool.cli.flags.group import Group, grouped
from kvtool.sizing.engines.flags import FLAGS
from kvtool.system.errors import KvtoolError


@dataclass(frozen=True)
class Colour(Group):
    red: Annotated[int, typer.Option(help="How red.", rich_help_panel="Colours")] = 1
    dark: Annotated[bool, typer.Option("--dark")] = False


@dataclass(frozen=True)
class Shade(Colour):
    blue: Annotated[str | None, typer.Option(metavar="LIST")] = None


def app(seen: list[object]) -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @grouped
    def paint(
        ctx: typer.Context,
        wall: str,
        *,
        shade: Shade,
        coats: Annotated[int, typer.Option(help="How many.")] = 2,
    ) -> None:
        """Paint it."""
        seen.append((ctx.get_parameter_source("red").name, wall, shade, coats))  # type: ignore[union-attr]

    return made


def test_options_reach_the_group_and_the_others_their_parameters() -> None:
    seen: list[object] = []
    done = CliRunner().invoke(app(seen), ["north", "--blue", "a,b", "--coats", "3", "--dark"])
    assert done.exit_code == 0, done.output
    assert seen == [("DEFAULT", "north", Shade(red=1, dark=True, blue="a,b"), 3)]
    CliRunner().invoke(app(seen), ["south", "--red", "7"])
    assert seen[1:] == [("COMMANDLINE", "south", Shade(red=7), 2)]


def test_a_value_of_the_wrong_type_is_a_usage_error() -> None:
    assert CliRunner().invoke(app([]), ["north", "--red", "dark"]).exit_code == 2


def test_the_options_stand_in_the_place_of_their_group() -> None:
    command = typer.main.get_command(app([]))
    assert [parameter.name for parameter in command.params][:5] == ["wall", "red", "dark", "blue", "coats"]
    assert command.help == "Paint it."


def values(group: type[EngineFlags] = EngineFlags, **given: object) -> EngineFlags:
    return group.of({parameter.name: parameter.default for parameter in group.parameters()} | given)


def test_an_engine_s_options_start_it() -> None:
    flags = values(engine="vllm", kv_cache_memory_bytes="1GiB", disable_hybrid_kv_cache_manager=True)
    start = flags.start(auto_fit=True, max_num_seqs=4)
    assert start is not None
    assert (start.name, start.auto_fit, start.max_num_seqs) == ("vllm", True, 4)
    assert (start.kv_cache_memory_bytes, start.hybrid_kv_cache_manager) == (1 << 30, False)
    assert values().start(auto_fit=False, max_num_seqs=4) is None


def test_a_flag_of_another_engine_is_refused_by_name() -> None:
    for name, value, message in (
        ("mem_fraction_static", 0.5, "--mem-fraction-static needs --engine sglang"),
        ("enable_prefix_caching", False, "--no-enable-prefix-caching needs --engine vllm or sglang"),
        ("disable_hybrid_kv_cache_manager", True, "--disable-hybrid-kv-cache-manager needs --engine vllm"),
    ):
        with pytest.raises(KvtoolError, match=message):
            values(**{name: value}).start(auto_fit=False)
    with pytest.raises(KvtoolError, match="--max-model-len -1 needs --engine vllm"):
        values(engine="sglang").start(auto_fit=True)


def test_every_row_with_a_help_is_an_option_with_its_default() -> None:
    assert values().values == {flag.field: flag.default for flag in FLAGS if flag.help}
    assert values(EngineMemory).values == {"kv_cache_memory_bytes": None}
