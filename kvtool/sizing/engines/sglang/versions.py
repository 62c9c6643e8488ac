"""What SGLang changed in its last releases of all that decides its pools, and the rules of each release.

Read in the Python source of the wheels sglang 0.5.3 to 0.5.23.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.versions import Change, History

MODELLED = "0.5.23"


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangRules:
    """The rules of one release; the values here are those of 0.5.3. Each field is explained by its Change below."""

    blackwell_scaled_rows: bool = True
    prefill_graphs: bool = False
    drafts_in_cells: bool = False


CHANGES = (
    Change(
        since="0.5.10",
        rule="blackwell_scaled_rows",
        value=False,
        what="sparse MLA on Blackwell is read by TensorRT-LLM's kernels: raw fp8 rows without scales",
        source="srt/server_args.py: _set_default_nsa_backends",
    ),
    Change(
        since="0.5.10",
        rule="prefill_graphs",
        value=True,
        what="graphs of prefill are captured by default, and memory is set aside for them",
        source="srt/server_args.py: disable_piecewise_cuda_graph",
    ),
    Change(
        since="0.5.16",
        rule="drafts_in_cells",
        value=True,
        what="a token of the pool is charged with the layers of an EAGLE or MTP draft too",
        source="srt/model_executor/pool_configurator.py: eagle_draft_num_layers",
    ),
)
HISTORY = History(
    engine="SGLang",
    first="0.5.3",
    modelled=MODELLED,
    rules=SglangRules(),
    changes=CHANGES,
    exact=("0.5.23",),
    checked=("0.5.3",),
)


def rules_at(version: str | None) -> SglangRules:
    """The rules of a release of SGLang; None is the modelled one. Raises KvtoolError for what is no version."""
    found: SglangRules = HISTORY.at(version)
    return found


def rules_of(options: EngineOptions) -> SglangRules:
    """The rules that a start is planned by: given, else those of its release."""
    return options.rules if isinstance(options.rules, SglangRules) else rules_at(options.version)
