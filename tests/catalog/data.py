"""The configs and facts that the catalogue's tests read, and the shapes they compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"
CONFIGS = sorted([*(DATA / "hf_configs").glob("*.json"), *(DATA / "vllm_configs").glob("*.json")])


def facts() -> dict[str, dict[str, Any]]:
    """By model id: what published sources say of it, and the bytes worked out from that (bf16)."""
    content: dict[str, dict[str, Any]] = json.loads((DATA / "facts" / "models.json").read_bytes())
    return content


def config(name: str) -> dict[str, Any]:
    """One config.json, by the last part of its file's name."""
    path = next(path for path in CONFIGS if path.stem.endswith(name))
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
}
