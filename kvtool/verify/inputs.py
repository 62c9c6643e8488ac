"""What was started, as kvtool names it: the model and flags of a log, with what the user says put over them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.catalog.resolve import resolve_model
from kvtool.sizing.drafts import MTP, Draft, draft_of, request_of, with_draft
from kvtool.sizing.dtypes import AUTO, FLOAT_BYTES, canonical_dtype
from kvtool.sizing.engines.flags import BY_FIELD, FLAGS, Flag
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.parallel import DEGREES, Parallel, check_layout
from kvtool.system.errors import KvtoolError
from kvtool.verify.facts import LogFacts
from kvtool.verify.kernels import kernels_card

# The log's spelling of each degree of parallelism -> its name in Parallel. Other flags have theirs in their rows.
_DEGREES = {
    "vllm": {
        "tensor_parallel_size": "tp",
        "pipeline_parallel_size": "pp",
        "data_parallel_size": "dp",
        "decode_context_parallel_size": "dcp",
    },
    "sglang": {
        "tp_size": "tp",
        "pp_size": "pp",
        "dp_size": "dp",
        "ep_size": "ep",
        "dcp_size": "dcp",
        "enable_dp_attention": "dp_attention",
    },
}
# Flags that change what is allocated, and that no plan follows.
_UNPLANNED = {
    "vllm": {
        "speculative_config": "the draft model of speculative_config adds layers to the cache",
        "kv_transfer_config": "a KV connector (kv_transfer_config) may keep windows as full attention",
        "mamba_block_size": "mamba_block_size changes how often states are kept",
        "cpu_offload_gb": "cpu_offload_gb keeps weights off the GPU",
        "lora_modules": "LoRA adapters take memory of their own",
    },
    "sglang": {
        "speculative_algorithm": "the draft model of speculative_algorithm takes a pool of its own",
    },
}
_OPPOSITE = ("disable_", "enforce_")  # flags that turn a field off
_DRAFT_FIELDS = {
    "method": re.compile(r"method['\"]?\s*[=:]\s*['\"](\w+)"),
    "model": re.compile(r"model['\"]?\s*[=:]\s*['\"]([^'\"]+)"),
}
_DRAFTED = re.compile(r"num_spec(?:ulative)?_tokens['\"]?\s*[=:]\s*(\d+)")
_NOTHING = ("", "None", "False", "0", "auto", "-1", "[]", "{}")
_RANKS = {degree: re.compile(rf"\b{degree.upper()}(\d{{1,4}})") for degree in ("tp", "pp")}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One start of an engine: of `model`, which is `target` with the layers of its `draft`. `inputs` are the flags in
    force by kvtool's names; `unplanned` are those that the plan does not follow, each with why it matters;
    `weight_dtype` is what the engine itself quantised the weights to, and `kernels` a card with the kernels that the
    log tells of, where none is named.
    """

    model: Model
    target: Model
    draft: Draft | None
    name: str
    options: EngineOptions
    inputs: Mapping[str, str | int | float | bool | None]
    unplanned: tuple[str, ...]
    weight_dtype: str
    kernels: Gpu | None = None


def started(
    facts: LogFacts,
    *,
    model: str | None,
    gpu: Gpu | None,
    given: Mapping[str, str],
    models_path: Path | None,
    family: str | None = None,
) -> Started:
    """The start that a log tells of, `given` flags and `model` first. Raises KvtoolError where no model is known."""
    inputs = {**_logged_inputs(facts), **given}
    found, name = _model(facts, model, models_path, family)
    if facts.flags.get("enable_expert_parallel") == "True" and found.moe is not None:
        inputs.setdefault("ep", str(_count("tp", inputs.get("tp", "1")) * _count("dp", inputs.get("dp", "1"))))
    draft = _draft(found, facts, inputs, models_path)
    options = _options(facts, inputs, gpu)
    if not facts.refused("layout"):
        check_layout(found, options.parallel)
    unplanned = tuple(
        why
        for flag, why in _UNPLANNED.get(facts.engine, {}).items()
        if facts.flags.get(flag, "") not in _NOTHING and (draft is None or flag != "speculative_config")
    )
    quantised = canonical_dtype(facts.flags.get("quantization", "").strip("'\""))
    weight_dtype = "fp8" if quantised == "fp8" and found.quantisation is None else AUTO
    return Started(
        model=found if draft is None else with_draft(found, draft),
        target=found,
        draft=draft,
        name=name,
        options=options,
        inputs={flag: _in_force(options, flag) for flag in inputs},
        unplanned=unplanned,
        weight_dtype=weight_dtype,
        kernels=None if gpu is not None else kernels_card(facts),
    )


def _draft(model: Model, facts: LogFacts, inputs: Mapping[str, str], models_path: Path | None) -> Draft | None:
    """What the log's speculative_config drafts with; None where it has none, or what it keeps is not known."""
    text, tokens = facts.flags.get("speculative_config", ""), inputs.get("num_speculative_tokens")
    if tokens is None or facts.engine != "vllm":
        return None
    fields = {name: found[1] for name, pattern in _DRAFT_FIELDS.items() if (found := pattern.search(text))}
    try:
        request = request_of({**fields, "num_speculative_tokens": _count("num_speculative_tokens", tokens)})
        if request.name is not None and request.method != MTP:
            known = load_catalogue(models_path).find(request.name)
            request = dataclasses.replace(request, model=known)
        return draft_of(model, request)
    except KvtoolError:
        return None


def _in_force(options: EngineOptions, flag: str) -> str | int | float | bool | None:
    value: str | int | float | bool | None = getattr(options if flag in BY_FIELD else options.parallel, flag)
    return value


def _logged_inputs(facts: LogFacts) -> dict[str, str]:
    """Flags by kvtool's names; the length that the engine settled on counts before the one it was asked for."""
    names = _names(facts.engine)
    logged = {name: value for name, value in facts.flags.items() if name in names and value not in ("", "None")}
    inputs = {names[name]: value for name, value in logged.items() if not name.startswith(_OPPOSITE)}
    inputs |= {names[name]: "False" for name in logged if name.startswith(_OPPOSITE) and logged[name] == "True"}
    if drafted := _DRAFTED.search(facts.flags.get("speculative_config", "")):
        inputs["num_speculative_tokens"] = drafted[1]
    if allocated := facts.flags.get("allocated_dtype"):  # what `auto` came to
        inputs["kv_cache_dtype"] = allocated
    for degree, count in _layout(facts, inputs).items():
        inputs.setdefault(degree, str(count))
    if (length := facts.last("max_model_len")) is not None:
        inputs["max_model_len"] = str(int(length.value))
    return inputs


def _names(engine: str) -> dict[str, str]:
    """The log's names of flags -> kvtool's. Engines that kvtool only compares caches of have a few."""
    if engine not in _DEGREES:
        return {"tp": "tp", "cache_block_seq_len": "block_size"} if engine == "lmdeploy" else {}
    return _DEGREES[engine] | {name: flag.field for flag in FLAGS for name in flag.log_names(engine)}


def _layout(facts: LogFacts, inputs: Mapping[str, str]) -> dict[str, int]:
    """Degrees that no flag tells, but the workers' names (`TP1`, `PP1`) or the size of their world do."""
    names = {reading.rank for reading in facts.readings}
    found = {
        degree: 1 + max((int(index) for name in names for index in pattern.findall(name)), default=0)
        for degree, pattern in _RANKS.items()
    }
    replicas, stages = (
        1 + round(rank.value) if (rank := facts.largest(term)) else 1 for term in ("dp_rank", "pp_rank")
    )
    found["pp"] = max(found["pp"], stages)
    outside = replicas * _count("pp", inputs.get("pp", str(found["pp"])))
    world = facts.largest("world_size")
    if world is not None and outside > 0 and world.value % outside == 0:
        found["tp"] = round(world.value) // outside
    return {degree: count for degree, count in found.items() if count > 1}


def _options(facts: LogFacts, inputs: Mapping[str, str], gpu: Gpu | None) -> EngineOptions:
    """Raises KvtoolError where a value is none that the flag can have."""
    degrees: dict[str, Any] = {name: _count(name, inputs[name]) for name in DEGREES if name in inputs}
    degrees["dp_attention"] = inputs.get("dp_attention") == "True"
    values: dict[str, Any] = {flag.field: _value(flag, inputs[flag.field]) for flag in FLAGS if flag.field in inputs}
    dtype = canonical_dtype(facts.flags.get("dtype", AUTO)) if facts.engine == "vllm" else AUTO
    dtype = dtype if dtype in FLOAT_BYTES else AUTO
    return EngineOptions(
        name=facts.engine, version=facts.version, parallel=Parallel(**degrees), gpu=gpu, dtype=dtype, **values
    )


def _value(flag: Flag, text: str) -> str | int | float | bool:
    """What the text of a log says, by the kind of the flag."""
    match flag.kind:
        case "count" | "size":
            return _count(flag.field, text)
        case "fraction":
            return _fraction(flag.field, text)
        case "switch":
            return text in ("True", "true", "enabled")
        case "dtype":
            return canonical_dtype(text)
        case "name":
            return text.replace("'", '"')  # a repr of counts by name is JSON but for its quotes


def _count(name: str, text: str) -> int:
    try:
        return int(float(text)) if "e" in text or "." in text else int(text.replace(",", ""))
    except (ValueError, OverflowError):
        raise KvtoolError(f"{name} {text!r} is not a whole number") from None


def _fraction(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise KvtoolError(f"{name} {text!r} is not a number") from None


def _model(
    facts: LogFacts, asked: str | None, models_path: Path | None, family: str | None = None
) -> tuple[Model, str]:
    """The model asked for, its config read as `family` where that is given, else the log's: its own name, its name in a
    Hub cache, or the last folder of its path.
    """
    if asked is not None:
        named = resolve_model(asked, models_path=models_path, family=family)
        return _as_served(named, facts.model, models_path), asked
    if facts.model is None:
        raise KvtoolError("the log does not say which model was served: name MODEL after it")
    catalogue = load_catalogue(models_path)
    for name in _spellings(facts.model):
        found = catalogue.find(name)
        if found is None and name == facts.model and _REPOSITORY.fullmatch(name):
            found = catalogue.find_variant(name)  # somebody else's, whose weights may not be those of its namesake
        if found is not None:
            return found, name
    try:
        return resolve_model(facts.model, models_path=models_path), facts.model
    except KvtoolError as error:
        raise KvtoolError(f"the log's model {facts.model} is not known: name MODEL after the log ({error})") from error


def _as_served(asked: Model, logged: str | None, models_path: Path | None) -> Model:
    """The log's own checkpoint where it is a quantised one of the model asked for: its weights are the log's."""
    if logged is None or asked.quantisation is not None or asked.weights_bytes is not None:
        return asked
    for name in _spellings(logged):
        try:
            served = resolve_model(name, models_path=models_path)
        except KvtoolError:
            continue
        return served if served.quantisation and served.layers == asked.layers else asked
    return asked


def _spellings(name: str) -> list[str]:
    """`/models/meta-llama/Llama-3.1-8B/1` -> itself, its last two parts, then each part from the last on."""
    cached = _HUB_CACHE.search(name)
    if cached is not None:
        return [f"{cached[1]}/{cached[2]}", cached[2]]
    parts = [part for part in name.split("/") if part]
    return [name, "/".join(parts[-2:]), *reversed(parts)]
