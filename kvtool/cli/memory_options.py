"""Options of `kvtool size` about the memory of a card, and the question that --users asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.options import CARD, optional_size
from kvtool.errors import KvtoolError
from kvtool.units import parse_length

if TYPE_CHECKING:
    from kvtool.sizing.lengths import Lengths
    from kvtool.sizing.solve.solve import Question
    from kvtool.sizing.tiers import Places

QUESTIONS = "What fits, and where"

MaxNumBatchedTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-num-batched-tokens",
        help="Tokens that the engine runs in a step (default: vLLM's).",
        rich_help_panel=CARD,
    ),
]
MaxNumSeqsOption = Annotated[
    int | None,
    typer.Option(
        "--max-num-seqs", help="Sequences that the engine runs at a time (default: vLLM's).", rich_help_panel=CARD
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="What an engine really took of a GPU, instead of the estimates.",
        rich_help_panel=CARD,
    ),
]
TiersOption = Annotated[
    bool,
    typer.Option(
        "--tiers",
        help="Where the cache could live: registers, L2, HBM, and --dram and --nvme.",
        rich_help_panel=QUESTIONS,
    ),
]
DramOption = Annotated[
    str | None, typer.Option("--dram", metavar="SIZE", help="DRAM for the cache, as 256GiB.", rich_help_panel=QUESTIONS)
]
NvmeOption = Annotated[
    str | None, typer.Option("--nvme", metavar="SIZE", help="NVMe for the cache, as 1TB.", rich_help_panel=QUESTIONS)
]
NvmeGbpsOption = Annotated[
    float | None, typer.Option("--nvme-gbps", help="What --nvme reads, in GB/s.", rich_help_panel=QUESTIONS)
]
UsersOption = Annotated[
    str | None,
    typer.Option(
        "--users",
        metavar="N|max",
        help="What serves N users at a time (or how many: max), by the plans of vLLM and SGLang (or --engine)? Tries "
        "1 to 16 GPUs without --tp, bf16 and fp8 without --kv-cache-dtype, and the longest context without --context.",
        rich_help_panel=QUESTIONS,
    ),
]
LengthsOption = Annotated[
    str | None,
    typer.Option(
        "--lengths",
        metavar="FILE|MEAN,P95",
        help="How many requests of such lengths fit at once: a .jsonl trace, a list, 4k,12k, or p50=2k,p95=16k.",
        rich_help_panel=QUESTIONS,
    ),
]


def places(wanted: bool, dram: str | None, nvme: str | None, nvme_gbps: float | None) -> Places | None:
    """Where the cache could live; None where no option asks for it. Raises KvtoolError."""
    from kvtool.sizing.tiers import Places

    if not wanted and dram is None and nvme is None and nvme_gbps is None:
        return None
    return Places(dram_bytes=optional_size(dram, "dram"), nvme_bytes=optional_size(nvme, "nvme"), nvme_gbps=nvme_gbps)


def lengths_of(text: str | None) -> Lengths | None:
    """The lengths of requests; None where the option was not given. Raises KvtoolError."""
    from kvtool.workloads.lengths import parse_lengths

    return None if text is None else parse_lengths(text)


def question(ctx: typer.Context, users: str, *, model: str | None, model_id: str) -> Question:
    """What --users asks, and what the other options leave open. Raises KvtoolError."""
    from kvtool.sizing.solve.solve import Question

    def given(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source.name != "DEFAULT"

    for name, instead in (("batch_size", "--users is the batch size"), ("lengths", "--lengths asks another question")):
        if given(name):
            raise KvtoolError(f"--users and --{name.replace('_', '-')} do not go together: {instead}")
    context = ctx.params["context"]
    if context is not None and "," in context:
        raise KvtoolError(f"--users asks about one context, not {context!r}")
    return Question(
        users=None if users == "max" else _users(users),
        context=None if context is None else parse_length(context, "context"),
        open_gpus=not given("tp"),
        open_pp=not given("pp"),
        open_dtype=not given("kv_cache_dtype"),
        served=_served(model, model_id),
    )


def _users(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise KvtoolError(f"users {text!r} is not a whole number or max") from None


def _served(model: str | None, model_id: str) -> str | None:
    """What an engine can load: a folder as it was typed, or the id on the Hub; a shape or a lone file is neither."""
    if model is None or Path(model).suffix in (".json", ".gguf"):
        return None
    return model if Path(model).is_dir() else model_id
