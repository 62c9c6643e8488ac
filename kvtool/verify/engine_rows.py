"""The rows of one log: budget, pool and what the engine made of it, each with what explains a difference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from kvtool.catalog.gpus import Gpu
from kvtool.results import VerifyRow
from kvtool.sizing.engines.sglang.plan import VERSION as SGLANG_VERSION
from kvtool.sizing.engines.vllm.document import inexact
from kvtool.sizing.engines.vllm.plan import VERSION as VLLM_VERSION
from kvtool.sizing.engines.vllm.plan import plan as vllm_plan
from kvtool.sizing.engines.vllm.versions import HISTORY
from kvtool.system.errors import KvtoolError
from kvtool.verify.budget import Estimate, kv_pool, pool_row, vllm_rows
from kvtool.verify.diagnose import agreeing_flags, untold_flags
from kvtool.verify.facts import Figure, LogFacts, exactly
from kvtool.verify.inputs import Started
from kvtool.verify.terms.sglang import sglang_plan, sglang_rows
from kvtool.verify.terms.sglang_defaults import default_starts
from kvtool.verify.terms.vllm import Planned, plan_rows, planned


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRows:
    """`version` is the engine's that the planner follows; `assumptions` say what the rows rest on."""

    rows: list[VerifyRow]
    version: str
    assumptions: list[str]


def engine_rows(facts: LogFacts, started: Started, estimated: Estimate) -> EngineRows:
    """All rows of the log's engine. Raises KvtoolError for flags that the engine does not take."""
    return _sglang(facts, started, estimated) if facts.engine == "sglang" else _vllm(facts, started, estimated)


def _sglang(facts: LogFacts, started: Started, estimated: Estimate) -> EngineRows:
    """As told; where that is off, with the defaults of a card or release that the log does not tell, if they agree."""
    first = _sglang_start(facts, started, estimated)
    if not _is_off(first):
        return first
    for words, other in default_starts(started):
        found = _sglang_start(facts, other, estimated)
        if words and not _is_off(found):
            text = (
                f"the log tells neither its card nor its release: its bytes are those of {words}, not of the defaults"
            )
            rows = [_with_text(row, text) if row.verdict == "equal" else row for row in found.rows]
            return replace(found, rows=rows, assumptions=[text, *found.assumptions])
    return replace(first, rows=_sglang_explained(facts, started, estimated, first.rows))


def _sglang_explained(facts: LogFacts, started: Started, estimated: Estimate, rows: list[VerifyRow]) -> list[VerifyRow]:
    """Where a term is off, the flag that the log does not tell under which none is."""
    for flag, other in untold_flags(started):
        try:
            agrees = not _is_off(_sglang_start(facts, other, estimated))
        except KvtoolError:
            continue
        if agrees:
            text = f"every term agrees with {flag}, which the log does not tell"
            return [_with_text(row, text) if row.verdict == "off" else row for row in rows]
    return rows


def _is_off(found: EngineRows) -> bool:
    return not found.rows or any(row.verdict == "off" for row in found.rows)


def _with_text(row: VerifyRow, text: str) -> VerifyRow:
    return msgspec.structs.replace(row, explanation="; ".join(filter(None, (row.explanation, text))))


def _sglang_start(facts: LogFacts, started: Started, estimated: Estimate) -> EngineRows:
    found = sglang_plan(started)
    assumptions = [*found.remarks, *found.inexact]
    if found.refusal is not None:
        assumptions.append(f"not planned: {found.refusal}")
    rows = list(sglang_rows(facts, started, found, estimated))
    return EngineRows(rows=rows, version=SGLANG_VERSION, assumptions=assumptions)


def _vllm(facts: LogFacts, started: Started, estimated: Estimate) -> EngineRows:
    rows = list(vllm_rows(facts, estimated))
    rows.append(pool_row(facts, estimated, rows))
    pool, assumptions = _pool(facts, started, estimated)
    plans = planned(facts, started, pool)
    if not plans.value.groups:
        assumptions.append(f"not planned: {plans.value.refusal}")
        return EngineRows(rows=rows, version=facts.version or VLLM_VERSION, assumptions=assumptions)
    if pool is not None or plans.counted is not None:
        told = pool if facts.of("kv_pool") or started.options.kv_cache_memory_bytes else None
        found = list(plan_rows(facts, plans, told))
        rows += _explained(found, facts, started, told, plans.value.inputs.gpu)
    assumptions += _plan_assumptions(facts, started, plans, pool)
    return EngineRows(rows=rows, version=facts.version or VLLM_VERSION, assumptions=assumptions)


def _pool(facts: LogFacts, started: Started, estimated: Estimate) -> tuple[Figure | None, list[str]]:
    """What the cache has: as flagged or logged, else as estimated; None where nothing says it."""
    flagged, logged, memory = started.options.kv_cache_memory_bytes, kv_pool(facts), estimated.memory
    if flagged:
        return exactly(flagged), ["the pool is --kv-cache-memory-bytes"]
    if logged is not None:
        text = "the pool is logged rounded: what follows from it is the range that this leaves open"
        return logged, [] if logged.exact else [text]
    if memory is not None and memory.kv_pool_bytes and not facts.of("num_blocks"):
        return exactly(memory.kv_pool_bytes), ["the log has no pool: blocks and tokens follow from an estimate of it"]
    return None, ["the log has no pool: what a request takes is predicted, and the log's blocks are taken as they are"]


def _plan_assumptions(facts: LogFacts, started: Started, plans: Planned, pool: Figure | None) -> list[str]:
    inputs, refusal = plans.value.inputs, (plans.counted or plans.value).refusal
    found = [f"the vLLM plan is approximate: {reason}" for reason in inexact(plans.value)]
    found += [f"not planned: {why}" for why in started.unplanned]
    if "max_num_batched_tokens" not in started.inputs and _batch_matters(started, plans, pool):
        card = (
            f"on {inputs.gpu.name}"
            if started.options.gpu
            else f"on the card taken for lack of --gpu, {inputs.gpu.name}"
        )
        found.append(f"max_num_batched_tokens {inputs.max_num_batched_tokens:,}: the default {card}")
    if refusal is not None and facts.refusal is None and (pool is not None or plans.counted is not None):
        found.append(f"vLLM {facts.version or VLLM_VERSION} would refuse this: {refusal}")
    return found


def _batch_matters(started: Started, plans: Planned, pool: Figure | None) -> bool:
    """Whether a request takes other blocks with other batches: windows keep what is in flight."""
    other = replace(started.options, max_num_batched_tokens=2 * plans.value.inputs.max_num_batched_tokens)
    again = vllm_plan(started.model, other, pool_bytes=plans.value.pool_bytes)
    return again.blocks_per_request != plans.value.blocks_per_request


def _explained(
    rows: list[VerifyRow], facts: LogFacts, started: Started, pool: Figure | None, card: Gpu
) -> list[VerifyRow]:
    """Where a term is off, the flag that would explain it, or what is not planned, is said beside it."""
    if all(row.verdict != "off" for row in rows):
        return rows
    flags = agreeing_flags(facts, started, pool, card=card)
    if flags:
        text = f"every term agrees with {' or '.join(flags[:2])}, which the log does not tell"
    elif started.unplanned:
        text = started.unplanned[0]
    elif facts.version != VLLM_VERSION:
        version = facts.version or "a version that it does not tell"
        text = f"no single flag explains it; the log is of {version}, {HISTORY.standing(facts.version)} by its rules"
    else:
        text = "no single flag explains it"
    return [_with_text(row, text) if row.verdict == "off" else row for row in rows]
