"""Every command's help: no flag is declared twice or cut, the common ones come first, and it ends with two examples
that fit a line and work.
"""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from kvtool import __version__
from kvtool.cli.app import app
from kvtool.cli.help import AS_OPTION, SPELLINGS
from kvtool.system.errors import KvtoolError

COMMANDS = typer.main.get_group(app).commands
RUNS_A_MODEL = {"bench", "generate", "kernels", "tiers"}
A_TRACE = Path(__file__).parents[1] / "data" / "traces" / "mooncake_conversation_200.jsonl"
A_LOG = Path(__file__).parents[1] / "verify" / "logs" / "vllm_0_31_llama_3_1_8b.log"


def examples(name: str) -> list[str]:
    lines = [line.strip() for line in (COMMANDS[name].epilog or "").splitlines()]
    return [line for line in lines if line.startswith("kvtool ")]


EXAMPLES = [example for name in COMMANDS for example in examples(name)]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_flag_is_declared_twice(name: str) -> None:
    flags = Counter(
        flag for parameter in COMMANDS[name].params for flag in (*parameter.opts, *parameter.secondary_opts)
    )
    assert [flag for flag, times in flags.items() if times > 1] == []


def shown(name: str) -> str:
    """The help on a terminal of 80 columns."""
    return CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_shown_whole(name: str) -> None:
    words = set(shown(name).replace(",", " ").split())
    for parameter in COMMANDS[name].params:
        for flag in (*parameter.opts, *parameter.secondary_opts):
            assert flag in words or not flag.startswith("--")
    assert max(map(len, shown(name).splitlines())) <= 80


def test_the_common_options_come_first_and_the_engines_own_last() -> None:
    lines = shown("size").splitlines()
    titles = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    shared = ("vllm, sglang, tensorrt-llm or lmdeploy", "vllm or sglang")
    own = ("vllm", "sglang", "tensorrt-llm or lmdeploy", "llama.cpp or ollama")
    assert titles[:2] == ["Arguments", "Options"]
    assert titles[-6:] == [f"With --engine {names}" for names in (*shared, *own)]
    common = lines[lines.index("Options:") : lines.index(f"{titles[2]}:")]
    assert {"--context", "--gpu", "--tp", "--engine", "--json"} <= {line.split()[0] for line in common if line}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_ends_with_two_examples_on_a_line_each(name: str) -> None:
    assert len(examples(name)) == 2
    assert [line.strip() for line in shown(name).splitlines() if line.strip()][-2:] == examples(name)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_parses(example: str) -> None:
    _, name, *arguments = shlex.split(example)
    COMMANDS[name].make_context(name, arguments)


@pytest.mark.parametrize("example", [line for line in EXAMPLES if line.split()[1] not in RUNS_A_MODEL])
def test_an_example_works(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(A_LOG, tmp_path / "vllm.log")
    shutil.copy(A_TRACE, tmp_path / "conversation.jsonl")
    result = CliRunner().invoke(app, shlex.split(example)[1:])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout != ""


@pytest.mark.parametrize("typed", SPELLINGS)
def test_an_engines_spelling_is_answered_with_ours(typed: str) -> None:
    having = [name for name in COMMANDS if SPELLINGS[typed] in shown(name).split()]
    assert having
    result = CliRunner().invoke(app, [having[0], typed, "1"])
    assert result.exit_code != 0
    assert getattr(result.exception, "possibilities", None) == [SPELLINGS[typed]] or SPELLINGS[typed] in result.output


@pytest.mark.parametrize("typed", AS_OPTION)
def test_a_model_stands_without_an_option(typed: str) -> None:
    for name in ("size", "bench", "generate"):
        result = CliRunner().invoke(app, [name, typed, "llama-3.1-8b"])
        assert isinstance(result.exception, KvtoolError), result.output
        assert f"{typed}: MODEL stands without an option" in str(result.exception)


def test_v_is_the_version() -> None:
    assert CliRunner().invoke(app, ["-V"]).output == f"kvtool {__version__}\n"


def test_a_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        told = {"_KVTOOL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return CliRunner().invoke(app, [], env=told, prog_name="kvtool").output.split()

    assert completed("kvtool si") == ["size"]
    assert "--kv-cache-dtype" in completed("kvtool size --kv")
