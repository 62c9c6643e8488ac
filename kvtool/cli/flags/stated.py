"""What is known of an engine's start besides its log."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated

import typer

from kvtool.cli.flags.card import CARD
from kvtool.cli.flags.group import Group
from kvtool.cli.flags.layout import LAYOUT
from kvtool.units import parse_length

_layout = partial(typer.Option, rich_help_panel=LAYOUT)
_card = partial(typer.Option, rich_help_panel=CARD)


@dataclass(frozen=True)
class Stated(Group):
    """Flags by their fields of EngineOptions or Parallel: what is given counts before the log."""

    tp: Annotated[int | None, typer.Option(help="Tensor parallel ranks, where the log does not say.")] = None
    max_model_len: Annotated[str | None, typer.Option(help="The longest sequence served.")] = None
    kv_cache_dtype: Annotated[str | None, typer.Option(help="Of the cache, as for `size`.")] = None
    block_size: Annotated[int | None, typer.Option(help="Tokens a block or page.")] = None
    mamba_ssm_cache_dtype: Annotated[str | None, typer.Option(help="Of recurrent state.")] = None
    async_scheduling: Annotated[
        bool | None,
        typer.Option("--async-scheduling/--no-async-scheduling", help="vLLM's, on by default."),
    ] = None
    pp: Annotated[int | None, _layout(help="Pipeline stages.")] = None
    dp: Annotated[int | None, _layout(help="Data parallel replicas.")] = None
    dcp: Annotated[int | None, _layout(help="Decode context parallel ranks.")] = None
    ep: Annotated[int | None, _layout(help="Expert parallel ranks.")] = None
    max_num_batched_tokens: Annotated[int | None, _card(help="Tokens that vLLM runs in a step.")] = None
    max_num_seqs: Annotated[int | None, _card(help="Sequences run at a time.")] = None
    gpu_memory_utilization: Annotated[float | None, _card(help="vLLM's part of the card.")] = None
    mem_fraction_static: Annotated[float | None, _card(help="SGLang's part of the card.")] = None

    def given(self) -> dict[str, str]:
        """What was given, as a log would say it. Raises KvtoolError."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.max_model_len is not None:
            given["max_model_len"] = parse_length(self.max_model_len, "max model len")
        return {name: str(value) for name, value in given.items()}
