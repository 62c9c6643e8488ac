"""Which source of weights a run asks for."""

from __future__ import annotations

from pathlib import Path

import torch

from kvtool.catalog.model import FullAttention, Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.weights.gguf import GgufWeights
from kvtool.engine.weights.safetensors import SafetensorsWeights
from kvtool.engine.weights.source import RandomWeights, WeightSource
from kvtool.system.errors import KvtoolError


def weight_source(model: Model, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> WeightSource:
    """`config.weights` as a source: "random", a folder with safetensors, or a .gguf file. Raises KvtoolError."""
    if config.weights == "random":
        return RandomWeights(seed=config.seed, dtype=dtype, device=device)
    path = Path(config.weights)
    if path.is_dir():
        return SafetensorsWeights(path, model, dtype=dtype, device=device)
    if path.is_file() and path.suffix == ".gguf":
        cache = model.layers[0].cache
        if not isinstance(cache, FullAttention):
            raise KvtoolError(f"the engine reads GGUF weights of MHA, MQA and GQA models; {model.id} is another kind")
        return GgufWeights(path, head_dim=cache.k_head_dim, dtype=dtype, device=device)
    raise KvtoolError(f"--weights {config.weights!r} is neither 'random', a folder with safetensors, nor a .gguf file")
