"""Asks the peers what one request takes: run by peers.py with the Python of the environment that has them.

Each peer's own code runs on the real config.json. Only what they fetch from the Hub beside it is stood in for: the list
of files and the size of the weights, which no cache byte depends on.

python ask.py CASES.json CONFIGS_FOLDER > answers.json
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import kvfit.cli
import vramscout.modern_core
import vramscout.modern_v06
import vramscout.modern_v07
from kvfit.models import ModelMetadata

hf_mem_run = importlib.import_module("hf_mem.run")  # the package hides it behind a function of that name
NOT_CACHE = {"Model weights / rank", "CUDA / runtime", "Prefill scratch", "Safety reserve"}


class RefusalError(Exception):
    """The peer's own words for why it gives no number."""


def ask_hf_mem(config: Path, context: int, dtype: str) -> int:
    """`hf-mem --experimental`: the bytes of its result's cache."""

    async def get_json_file(client: object, url: str, headers: object = None) -> Any:
        if url.endswith("config.json"):
            return json.loads(config.read_text())
        return [{"type": "file", "path": name} for name in ("config.json", "model.safetensors")]

    async def fetch_safetensors_metadata(client: object, url: str, headers: object = None) -> dict[str, Any]:
        return {"weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}

    with (
        mock.patch.object(hf_mem_run, "get_json_file", get_json_file),
        mock.patch.object(hf_mem_run, "fetch_safetensors_metadata", fetch_safetensors_metadata),
    ):
        result = hf_mem_run.run(
            "local/config",
            experimental=True,
            max_model_len=context,
            kv_cache_dtype={"bf16": "bfloat16"}.get(dtype, dtype),
        )
    if result.kv_cache is None:
        raise RefusalError("gives no cache for this config")
    return int(result.kv_cache)


def ask_kvfit(config: Path, context: int, dtype: str) -> int:
    """`kvfit MODEL --json`: the bytes a sequence of its cache."""

    def fetch_model_metadata(model: str, **named: object) -> ModelMetadata:
        return ModelMetadata(
            repo_id=model,
            requested_revision="main",
            resolved_revision=None,
            config=json.loads(config.read_text()),
            weight_bytes=1,
            weight_source="not asked for",
        )

    arguments = ["local/config", "--hardware", "h100", "--context", str(context), "--kv-dtype", dtype, "--json"]
    out, error = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(kvfit.cli, "fetch_model_metadata", fetch_model_metadata),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        kvfit.cli.main([*arguments, "--allow-context-overflow"])
    if not out.getvalue():
        raise RefusalError(error.getvalue().strip().partition("\n")[0])
    return round(json.loads(out.getvalue())["cache"]["bytes_per_sequence"])


def ask_vramscout(config: Path, context: int, dtype: str) -> int:
    """`vramscout CONFIG --engine vllm`: all parts of its plan that are cache or state."""
    with mock.patch.object(vramscout.modern_v06, "_selected_hub_metadata", return_value=(1, None)):
        plan = vramscout.modern_v07.plan_modern(
            str(config), context=context, kv_dtype=dtype, engine="vllm", vram_gib=80.0
        )
    parts = [gib for name, gib in plan.parts_gib.items() if name not in NOT_CACHE]
    return round(sum(parts) * 2**30)


PEERS: dict[str, Callable[[Path, int, str], int]] = {
    "hf-mem": ask_hf_mem,
    "kvfit": ask_kvfit,
    "vramscout": ask_vramscout,
}


def answer(ask: Callable[[Path, int, str], int], config: Path, context: int, dtype: str) -> dict[str, Any]:
    """`bytes`, or a `refusal` in the peer's own words."""
    try:
        return {"bytes": ask(config, context, dtype), "refusal": None}
    except Exception as error:
        text = " ".join(str(error).replace(str(config), config.name).split()) or type(error).__name__
        return {"bytes": None, "refusal": text[:200]}


def main() -> None:
    warnings.simplefilter("ignore")
    cases, configs = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    answers = {
        case["case"]: {
            name: answer(ask, configs / case["config"], case["max_model_len"], case["kv_cache_dtype"])
            for name, ask in PEERS.items()
        }
        for case in cases
    }
    json.dump(answers, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
