"""Every option of a decoder shows in the logits: one that was forgotten would be seen by the tests of architectures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvtool.catalog.decoder import ClampedSwiglu, Router
from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from tests.engine.conftest import SaveTiny
from tests.engine.running import generate, prompt
from tests.engine.tiny import MAX_POSITIONS

OPTIONS = {
    ("gemma2", "attention_softcap"): 0.0,
    ("gemma2", "logit_softcap"): 0.0,
    ("gemma2", "attention_scale"): None,
    ("gemma2", "scaled_embedding"): False,
    ("gemma2", "activation"): "relu",
    ("gemma3", "local_rope_theta"): None,
    ("gemma3", "rope_scaling"): None,
    ("gemma3", "rope_theta"): 100.0,
    ("gemma3", "qk_norm"): False,
    ("gemma3-biased", "qkv_bias"): False,
    ("gemma3-biased", "output_bias"): False,
    ("gpt-oss", "attention_sinks"): False,
    ("gpt-oss", "clamped_swiglu"): ClampedSwiglu(),
    ("gpt-oss", "mlp_bias"): False,
    ("gpt-oss", "qkv_bias"): False,
    ("gpt-oss", "rope_scaling"): None,
    ("gpt-oss", "router"): Router(),
    ("phi3-longrope", "rope_scaling"): None,
    ("smollm3", "rope_pattern"): (True,),
    ("smollm3-listed", "rope_pattern"): (True, True, True, False),
    ("gpt2", "norm_eps"): 0.1,
    ("gpt2", "activation"): "relu",
    ("gpt2", "position_offset"): None,
    ("opt", "mlp_bias"): False,
}


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[f"{name}-{option}" for name, option in OPTIONS])
def test_an_option_shows_in_the_logits(tiny: SaveTiny, name: str, option: str) -> None:
    folder = str(tiny(name).folder)
    model = resolve_model(folder)
    assert model.decoder is not None
    without = replace(model, decoder=replace(model.decoder, **{option: OPTIONS[name, option]}))
    settings = EngineConfig(weights=folder, dtype="fp32", device="cpu")
    first, second = (logits_of(LoadedModel(m, settings, max_positions=MAX_POSITIONS)) for m in (model, without))
    assert float((first - second).abs().max()) > 0.02


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    engine = Engine(loaded, num_pages=16)
    engine.keep_logits = True
    return generate(engine, [prompt(60)], max_tokens=1)[0].logits[0]
