"""How a model is laid out over GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.values import count_list

if TYPE_CHECKING:
    from kvtool.ranks.layout import RankLayout
    from kvtool.sizing.parallel import Parallel

LAYOUT = "Layout over GPUs"
_option = partial(typer.Option, rich_help_panel=LAYOUT)


@dataclass(frozen=True)
class _BesideTp(Group):
    """The degrees that a layout has besides tp."""

    pp: Annotated[int, _option(help="Pipeline stages.")] = 1
    dp: Annotated[int, _option(help="Data parallel replicas: each holds its own sequences.")] = 1
    dcp: Annotated[int, _option(help="Decode context parallel ranks, out of the tp ranks.")] = 1
    ep: Annotated[int, _option(help="Expert parallel ranks, out of the tp x dp ranks.")] = 1
    enable_dp_attention: Annotated[
        bool,
        _option("--enable-dp-attention", help="dp divides the tp ranks into replicas of attention, as in SGLang."),
    ] = False

    def _with(self, tp: int) -> Parallel:
        from kvtool.sizing.parallel import Parallel

        return Parallel(tp=tp, pp=self.pp, dp=self.dp, dcp=self.dcp, ep=self.ep, dp_attention=self.enable_dp_attention)


@dataclass(frozen=True)
class Layout(_BesideTp):
    """One layout."""

    tp: Annotated[int, typer.Option(help="Tensor parallel ranks.")] = 1

    def parallel(self) -> Parallel:
        """The degrees. Raises KvtoolError where they do not go together."""
        return self._with(self.tp)


@dataclass(frozen=True)
class Layouts(_BesideTp):
    """A layout for each tp of a list."""

    tp: Annotated[str, typer.Option(metavar="LIST", help="Tensor parallel ranks, as 1,8.")] = "1"

    def parallels(self) -> list[Parallel]:
        """The degrees of each. Raises KvtoolError where they do not go together."""
        return [self._with(ranks) for ranks in count_list(self.tp, "tp")]


RANKS = "Ranks that run it together"
_rank = partial(typer.Option, rich_help_panel=RANKS)


@dataclass(frozen=True)
class _Shared(Group):
    """What ranks share beside heads."""

    cp: Annotated[int, _rank(help="Ranks that share a prompt's tokens (ring attention); ranks = tp x cp.")] = 1
    dcp: Annotated[int, _rank(help="Ranks, out of the tp ranks, that share the tokens of a KV head.")] = 1
    ring: Annotated[
        str, _rank(help="What goes round where tokens are shared: pass-kv, pass-q, or auto (fewer bytes).")
    ] = "auto"
    replicated_head: Annotated[
        bool, _rank("--replicated-head", help="Every rank has all of the vocabulary, instead of a share.")
    ] = False

    def _with(self, tp: int) -> RankLayout:
        from kvtool.ranks.layout import RankLayout

        return RankLayout(tp=tp, cp=self.cp, dcp=self.dcp, ring=self.ring, replicated_head=self.replicated_head)


@dataclass(frozen=True)
class Ranks(_Shared):
    """One layout of a run."""

    tp: Annotated[int, _rank(help="Ranks that share heads; started here, or by torchrun.")] = 1

    def layout(self) -> RankLayout:
        """Raises KvtoolError where the degrees do not go together."""
        return self._with(self.tp)
