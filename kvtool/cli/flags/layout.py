"""How a model is laid out over GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.values import count_list
from kvtool.system.errors import KvtoolError
from kvtool.units import split_list

if TYPE_CHECKING:
    from kvtool.cli.flags.bench import BenchGrid
    from kvtool.engine.handover.options import Disaggregation
    from kvtool.machine.ranks.layout import RankLayout
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


DisaggregateOption = Annotated[
    str | None,
    _rank(
        metavar="SPEC",
        help="Engines that prefill hand pages to others that decode: prefill=1,decode=1; then prefill-tp=N, "
        "decode-tp=N, transfer=shm|tcp, by=request|layer, listen=ADDRESS.",
    ),
]


def _disaggregation(text: str | None) -> Disaggregation | None:
    from kvtool.engine.handover.options import parse_disaggregation

    return None if text is None else parse_disaggregation(text)


@dataclass(frozen=True)
class Ranks(Group):
    """One layout of a run."""

    tp: Annotated[int, _rank(help="Ranks that share heads; started here, or by torchrun.")] = 1
    cp: Annotated[int, _rank(help="Ranks that share a prompt's tokens (ring attention); ranks = tp x cp.")] = 1
    dcp: Annotated[int, _rank(help="Ranks, out of the tp ranks, that share the tokens of a KV head.")] = 1
    dp: Annotated[
        int, _rank(help="Replicas of the attention, as many as --tp: each keeps its own requests (for MLA).")
    ] = 1
    ring: Annotated[
        str,
        _rank(
            help="What goes round where tokens are shared: pass-kv, pass-q, auto (fewer bytes) or measured (sooner)."
        ),
    ] = "auto"
    replicated_head: Annotated[
        bool, _rank("--replicated-head", help="Every rank has all of the vocabulary, instead of a share.")
    ] = False
    disaggregate: DisaggregateOption = None

    def disaggregation(self) -> Disaggregation | None:
        """Engines that prefill and others that decode; None where one does both. Raises KvtoolError."""
        return _disaggregation(self.disaggregate)

    def layout(self) -> RankLayout:
        """Raises KvtoolError where the degrees do not go together."""
        from kvtool.machine.ranks.layout import RankLayout

        return RankLayout(
            tp=self.tp, cp=self.cp, dcp=self.dcp, dp=self.dp, ring=self.ring, replicated_head=self.replicated_head
        )


@dataclass(frozen=True)
class RankLists(Group):
    """Layouts of a run to measure, one after the other."""

    tp: Annotated[
        str, _rank(metavar="LIST", help="Ranks that share heads, as 1,2, in turn; a server's own with --url.")
    ] = "1"
    cp: Annotated[
        str, _rank(metavar="LIST", help="Ranks that share a prompt's tokens (ring attention); ranks = tp x cp.")
    ] = "1"
    dcp: Annotated[
        str, _rank(metavar="LIST", help="Ranks, out of the tp ranks, that share the tokens of a KV head.")
    ] = "1"
    dp: Annotated[
        str, _rank(metavar="LIST", help="Replicas of the attention, as many as --tp: each keeps its own requests.")
    ] = "1"
    ring: Annotated[
        str, _rank(metavar="LIST", help="What goes round where tokens are shared: auto, measured, pass-kv, pass-q.")
    ] = "auto"
    replicated_head: Annotated[
        bool, _rank("--replicated-head", help="Every rank has all of the vocabulary, instead of a share.")
    ] = False
    disaggregate: DisaggregateOption = None

    def lone_tp(self) -> int:
        """The ranks of a server that runs. Raises KvtoolError for a list."""
        (tp, *others) = count_list(self.tp, "tp")
        if others:
            raise KvtoolError(f"--tp {self.tp}: a server has one number of ranks")
        return tp

    @property
    def given(self) -> bool:
        """Whether several ranks are asked for."""
        return {self.tp, self.cp, self.dcp, self.dp} != {"1"}

    def grid(self, grid: BenchGrid) -> BenchGrid:
        """With the part that measures these in place of the usual ones. Raises KvtoolError for several."""
        wanted = {"ranks": self.given, "disaggregate": self.disaggregate is not None}
        parts = [part for part, asked in wanted.items() if asked]
        if not parts:
            return grid
        if len(parts) > 1 or grid.parts not in (None, *parts):
            raise KvtoolError(
                "ranks, --disaggregate and other --parts are measured in runs of their own; engines that are apart "
                "take prefill-tp and decode-tp"
            )
        return replace(grid, parts=parts[0])

    def disaggregation(self) -> Disaggregation | None:
        """Raises KvtoolError."""
        return _disaggregation(self.disaggregate)

    def layouts(self) -> tuple[RankLayout, ...] | None:
        """Every tp with every cp, dcp, dp and ring that goes together; None where nothing was asked for. Raises
        KvtoolError where no two go together."""
        if not self.given:
            return None
        from kvtool.machine.ranks.layout import RankLayout

        names = ("tp", "cp", "dcp", "dp")
        found = [
            RankLayout(tp=tp, cp=cp, dcp=dcp, dp=dp, ring=ring, replicated_head=self.replicated_head)
            for tp, cp, dcp, dp in product(*(count_list(getattr(self, name), name) for name in names))
            if tp % dcp == 0 and (dp == 1 or (tp, cp, dcp) == (dp, 1, 1))
            for ring in (split_list(self.ring) if cp * dcp > 1 else ["auto"])
        ]
        if not found:
            raise KvtoolError(
                f"--tp {self.tp} goes with no --dcp {self.dcp} and --dp {self.dp}: dcp divides tp; dp is as many, "
                "without cp and dcp"
            )
        return tuple(found)
