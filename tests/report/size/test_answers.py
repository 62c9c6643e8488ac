from __future__ import annotations

import io
import shlex
from dataclasses import replace

import msgspec
import pytest

from kvtool.report.rows import size_rows
from kvtool.report.size.answers import (
    lengths_table,
    print_solutions,
    solution_table,
    tier_table,
    wrapped_command,
)
from kvtool.report.size.size import print_size
from kvtool.report.terminal import Terminal
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.questions.tiers import Places
from kvtool.sizing.size import size
from kvtool.sizing.solve.settings import Question
from kvtool.sizing.solve.solve import solve
from kvtool.units import GIB, MIB
from kvtool.workloads.lengths import lognormal
from tests.sizing.example import CARD, LLAMA_8B

H100 = msgspec.structs.replace(CARD, compute_units=132, register_file_bytes=262_144, l2_bytes=50 * MIB, pcie_gbps=64.0)
PLACES = Places(dram_bytes=256 * GIB, nvme_bytes=10**12, nvme_gbps=7.0)
OPTIONS = SizeOptions(
    contexts=(8192,), batch_sizes=(16,), gpu=H100, places=PLACES, lengths=lognormal(mean=4096, p95=12288),
    shared_prefix=1024,
)  # fmt: skip
QUESTION = Question(users=64, context=32768, open_gpus=True, open_pp=True, open_dtype=True, loads="org/model")

HOPPER = msgspec.structs.replace(CARD, vendor="NVIDIA", arch="Hopper")
ONE = replace(QUESTION, open_gpus=False, open_dtype=False)


def console(width: int) -> Terminal:
    return Terminal(width=width, file=io.StringIO(), color_system=None)


def text(of: Terminal) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_tiers_in_a_table() -> None:
    rows = size(LLAMA_8B, options=replace(OPTIONS, shared_prefix=0)).rows
    assert tier_table(rows).rows == [
        ("8k x 16", "registers", "33 MiB", "16 GiB", "496 x", "256", "0", "-"),
        ("", "L2", "50 MiB", "16 GiB", "328 x", "400", "0", "-"),
        ("", "HBM pool", "51.9 GiB", "16 GiB", "31%", "424,800", "51", "-"),
        ("", "DRAM", "256 GiB", "16 GiB", "6.2%", "2,097,152", "256", "16.8"),
        ("", "NVMe", "931 GiB", "16 GiB", "1.7%", "7,629,392", "931", "153"),
    ]


def test_unknown_capacities_show_question_marks() -> None:
    rows = size(LLAMA_8B, options=replace(OPTIONS, gpu=CARD)).rows
    assert tier_table(rows).rows[0][2:] == ("?", "14.1 GiB", "?", "?", "?", "-")


def test_lengths_in_a_table() -> None:
    found = size(LLAMA_8B, options=replace(OPTIONS, shared_prefix=0)).rows[0].lengths
    assert found is not None
    table = lengths_table(found)
    assert [name for name, _ in table.rows][:2] == ["on average", "with 99% probability"]
    on_average, likely, worst = (int(count.replace(",", "")) for _, count in table.rows)
    assert on_average > likely > worst
    assert "lognormal of mean 4,096 and p95 12,288 tokens: mean 4,0" in table.note


@pytest.mark.parametrize("width", [80, 100, 200])
def test_everything_keeps_to_the_width(width: int) -> None:
    shown = console(width)
    print_size(size(LLAMA_8B, options=OPTIONS), shown)
    lines = text(shown).splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("Prefix of 1k tokens, 8k x 16: shared 14.12 GiB, unshared 16 GiB") for line in lines)


def test_solutions_in_a_table_and_as_commands() -> None:
    document, _ = solve(LLAMA_8B, SizeOptions(gpu=HOPPER), QUESTION)
    assert document.solutions is not None
    assert solution_table(document.solutions).rows[0] == (
        "4", "tp4", "fp8", "64", "32k", "127.49", "127.41", "127", "63.8 GiB"
    )  # fmt: skip
    shown = console(80)
    print_size(document, shown)
    printed = text(shown)
    assert max(map(len, printed.splitlines())) <= 80
    command = document.solutions[0].vllm
    assert command is not None
    assert "\n".join(wrapped_command(command)) in printed
    lines = printed.splitlines()
    assert lines[0] == "4 GPUs (tp4), fp8 cache: room for 64 users of 32k (vLLM 127.49, SGLang 127.41)."
    assert printed.index("What fits, best first") < printed.index("vllm serve") < printed.index("Memory of one")
    assert lines[-1].endswith("notes: --explain or --json.")
    assert "What the layers keep" not in printed
    assert "FIRST_NODE" not in printed


def test_the_first_node_is_mentioned_where_it_stands_in_a_command() -> None:
    for parallel, mentioned in ((Parallel(tp=4), False), (Parallel(tp=8, pp=2), True)):
        document, _ = solve(LLAMA_8B, SizeOptions(gpu=HOPPER, parallel=parallel), replace(QUESTION, open_gpus=False))
        shown = console(100)
        print_size(document, shown, explain=True)
        printed = text(shown)
        assert ("--nnodes" in printed) == ("put its address for FIRST_NODE" in " ".join(printed.split())) == mentioned


def test_no_solution_is_said() -> None:
    document, _ = solve(LLAMA_8B, SizeOptions(gpu=HOPPER, parallel=Parallel(tp=2)), replace(ONE, users=200))
    assert document.solutions == []
    shown = console(80)
    print_solutions([], document.rejected or [], shown)
    printed = " ".join(text(shown).split())
    assert "Nothing that was tried fits" in printed
    assert "2 GPUs (tp2), bf16: vLLM holds 29.83 of 200 users; SGLang holds 29.80 of 200 users" in printed


def test_a_wrapped_command_is_the_same_to_a_shell() -> None:
    command = shlex.join(["vllm", "serve", "/my models/[llama]", "--name", "two words"])
    command += " --enable-expert-parallel --tensor-parallel-size 8 --max-num-batched-tokens 8192 --last"
    lines = wrapped_command(command)
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == shlex.split(command)
    assert max(map(len, lines)) <= 80
    assert not any(line.endswith("--tensor-parallel-size \\") for line in lines)


def test_csv_has_what_sharing_saves() -> None:
    (line,) = size_rows(size(LLAMA_8B, options=OPTIONS).rows)
    assert line["sharing_saved_bytes"] == 15 * 1024 * 131_072
    assert line["fit_measured"] == ""
