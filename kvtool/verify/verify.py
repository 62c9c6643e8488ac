"""A log held against the prediction of the very start that it tells of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvtool.catalog.checkpoint import find_checkpoint
from kvtool.catalog.gpus import Gpu
from kvtool.results import VerifyDocument, VerifyEngine, VerifyRow
from kvtool.verify.budget import Estimate, estimate
from kvtool.verify.engine_rows import EngineRows, engine_rows
from kvtool.verify.facts import LogFacts
from kvtool.verify.inputs import Started, started
from kvtool.verify.refusals import refusal
from kvtool.verify.terms.blocks import block_rows
from kvtool.verify.terms.llama_cpp import llama_cpp_rows

ENGINES = ("vllm", "sglang")  # those whose whole memory is planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user says of the start: it overrules the log."""

    model: str | None = None
    gpu: Gpu | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    models_path: Path | None = None
    family: str | None = None


def verify(facts: LogFacts, asked: Asked, *, log: str) -> VerifyDocument:
    """The document of one log. Raises KvtoolError where its model is not known, or a flag's value is none."""
    start = started(
        facts,
        model=asked.model,
        gpu=asked.gpu,
        given=asked.flags,
        models_path=asked.models_path,
        family=asked.family,
    )
    if facts.refused("layout"):
        return _not_laid_out(facts, start, log)
    if facts.engine not in ENGINES:
        return _caches_only(facts, start, log)
    estimated = estimate(facts, start, find_checkpoint(start.name))
    compared = engine_rows(facts, start, estimated)
    why = refusal(facts, start, estimated)
    return VerifyDocument(
        log=log,
        engine=VerifyEngine(name=facts.engine, version=facts.version, predicted_version=compared.version),
        model=start.model.id,
        inputs=dict(start.inputs),
        rows=compared.rows,
        refusal=why,
        verdict="refused" if why else _verdict(compared.rows),
        assumptions=[*_assumptions(facts, start, estimated, compared)],
    )


def _caches_only(facts: LogFacts, start: Started, log: str) -> VerifyDocument:
    """Of an engine whose budget is not estimated: the caches that it says it allocated."""
    if facts.engine in ("llama.cpp", "ollama"):
        told = start.options.kv_cache_dtype if "kv_cache_dtype" in start.inputs else None
        rows, assumptions = llama_cpp_rows(facts, start.model, told)
    else:
        rows, assumptions = block_rows(facts, start)
    return VerifyDocument(
        log=log,
        engine=VerifyEngine(name=facts.engine, version=facts.version, predicted_version=None),
        model=start.model.id,
        inputs=dict(start.inputs),
        rows=rows,
        refusal=None,
        verdict=_verdict(rows),
        assumptions=[*start.model.assumed, *assumptions],
    )


def _not_laid_out(facts: LogFacts, start: Started, log: str) -> VerifyDocument:
    """Of a start whose layout the model does not take: there is nothing to plan."""
    return VerifyDocument(
        log=log,
        engine=VerifyEngine(name=facts.engine, version=facts.version, predicted_version=None),
        model=start.model.id,
        inputs=dict(start.inputs),
        rows=[],
        refusal=refusal(facts, start, None),
        verdict="refused",
        assumptions=[*start.model.assumed],
    )


def _verdict(rows: list[VerifyRow]) -> str:
    """Usable memory is the log's own product: alone it bears nothing out."""
    found = {row.verdict for row in rows if row.term != "usable memory" or row.verdict == "off"}
    return "off" if "off" in found else "agrees" if "equal" in found else "uncompared"


def _assumptions(facts: LogFacts, start: Started, estimated: Estimate, compared: EngineRows) -> list[str]:
    found = [*start.model.assumed, *compared.assumptions]
    if facts.starts > 1:
        found.append(f"the log tells of {facts.starts} starts: the last one counts")
    if facts.version is None:
        found.append(f"the log does not say which {facts.engine} wrote it: taken as {compared.version}")
    elif compared.version and not facts.version.startswith(compared.version):
        found.append(f"the log is of {facts.engine} {facts.version}: predictions follow {compared.version}")
    found += [f"not planned: {why}" for why in start.unplanned]
    if estimated.memory is not None:
        found.append(
            "weights, activations, graphs and what is outside torch are estimates: they cannot be off, only far"
        )
    return found
