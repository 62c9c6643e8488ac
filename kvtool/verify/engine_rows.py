"""The rows of one log: budget, pool and what the engine made of it, each with what explains a difference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from kvtool.results import VerifyRow
from kvtool.sizing.engines import sglang
from kvtool.sizing.engines.vllm import plan as vllm
from kvtool.verify.budget import Estimate, kv_pool, pool_row, vllm_rows
from kvtool.verify.diagnose import agreeing_flags
from kvtool.verify.facts import Figure, LogFacts, exactly
from kvtool.verify.inputs import Started
from kvtool.verify.sglang_terms import sglang_plan, sglang_rows
from kvtool.verify.vllm_terms import Planned, plan_rows, planned


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
    found = sglang_plan(started)
    assumptions = [*found.remarks, *found.inexact]
    if found.refusal is not None:
        assumptions.append(f"not planned: {found.refusal}")
    rows = list(sglang_rows(facts, started, found, estimated))
    return EngineRows(rows=rows, version=sglang.VERSION, assumptions=assumptions)


def _vllm(facts: LogFacts, started: Started, estimated: Estimate) -> EngineRows:
    rows = list(vllm_rows(facts, estimated))
    rows.append(pool_row(facts, estimated, rows))
    pool, assumptions = _pool(facts, started, estimated)
    if pool is None:
        assumptions.append("no block is predicted: neither the log nor an estimate says what the cache had")
        return EngineRows(rows=rows, version=vllm.VERSION, assumptions=assumptions)
    plans = planned(facts, started, pool)
    assumptions += _plan_assumptions(started, plans)
    found = list(plan_rows(facts, plans, pool if facts.of("kv_pool") else None))
    rows += _explained(found, facts, started, pool)
    return EngineRows(rows=rows, version=vllm.VERSION, assumptions=assumptions)


def _pool(facts: LogFacts, started: Started, estimated: Estimate) -> tuple[Figure | None, list[str]]:
    """What the cache has: as flagged or logged, else as estimated."""
    flagged = started.options.kv_cache_memory_bytes
    if flagged:
        return exactly(flagged), ["the pool is --kv-cache-memory-bytes"]
    logged = kv_pool(facts)
    if logged is not None and logged.exact:
        return logged, []
    if logged is not None:
        text = (
            "the pool is logged rounded to 10 MiB: blocks and tokens are predicted as the range that this leaves open"
        )
        return logged, [] if facts.of("num_blocks") else [text]
    if facts.of("num_blocks"):
        return exactly(0), ["the log has no pool: blocks are taken from it, and the rest predicted from those"]
    memory = estimated.memory
    if memory is not None and memory.kv_pool_bytes:
        return exactly(memory.kv_pool_bytes), ["the log has no pool: blocks and tokens follow from an estimate of it"]
    return None, []


def _plan_assumptions(started: Started, plans: Planned) -> list[str]:
    inputs, found = plans.value.inputs, []
    if "max_num_batched_tokens" not in started.inputs:
        card = started.options.gpu.name if started.options.gpu else f"none named, so {inputs.gpu.name}"
        found.append(f"max_num_batched_tokens {inputs.max_num_batched_tokens:,}: vLLM's default for the card ({card})")
    if plans.value.refusal is not None:
        found.append(f"vLLM {vllm.VERSION} would refuse this: {plans.value.refusal}")
    return found


def _explained(rows: list[VerifyRow], facts: LogFacts, started: Started, pool: Figure) -> list[VerifyRow]:
    """Where a term is off, the flag that would explain it, or what is not planned, is said beside it."""
    if all(row.verdict != "off" for row in rows):
        return rows
    flags = agreeing_flags(facts, started, pool)
    if flags:
        text = f"every term agrees with {' or '.join(flags[:2])}, which the log does not tell"
    elif started.unplanned:
        text = started.unplanned[0]
    elif facts.version != vllm.VERSION:
        text = f"no single flag explains it; the log is of {facts.version or 'an unknown version'}, not {vllm.VERSION}"
    else:
        text = "no single flag explains it"
    return [
        msgspec.structs.replace(row, explanation="; ".join(filter(None, (row.explanation, text))))
        if row.verdict == "off"
        else row
        for row in rows
    ]
