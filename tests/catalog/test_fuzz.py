"""Real configs with values replaced, dropped and invented: each is read or refused in one line, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import FullAttention, Model
from kvtool.system.errors import KvtoolError
from tests.catalog.data import CONFIGS

CONTENTS: list[dict[str, Any]] = [json.loads(path.read_bytes()) for path in CONFIGS]
NAMES = sorted({name for content in CONTENTS for name in [*content, *content.get("text_config", {})]})
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.sampled_from([10**20, 10**400, -1, 0, float("nan"), float("inf"), 1e308]),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-2, 200), st.text(max_size=3), st.none()), max_size=6),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(draw(st.sampled_from(CONTENTS))))
    target = content.get("text_config", content) if draw(st.booleans()) else content
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(target))) if target and draw(st.booleans()) else draw(st.sampled_from(NAMES))
        if draw(st.booleans()):
            target[name] = draw(VALUES)
        else:
            target.pop(name, None)
    return content


def read_or_refuse(content: dict[str, Any]) -> Model | None:
    """The model, or None for a refusal, which must be one line that names the file. Anything else gets out."""
    try:
        return model_from_config(content, id="fuzz", source="config.json")
    except KvtoolError as error:
        message = str(error)
    assert message.startswith("config.json")
    assert "\n" not in message
    return None


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_a_mutated_config_is_read_or_refused(content: dict[str, Any]) -> None:
    model = read_or_refuse(content)
    if model is None:
        return
    assert 1 <= model.num_layers <= 8192
    for layer in model.layers:
        if isinstance(layer.cache, FullAttention):
            # OpenELM counts query heads layer by layer; the model has those of its widest.
            assert model.architecture == "openelm" or model.num_heads % layer.cache.kv_heads == 0
            assert layer.cache.k_head_dim >= 1
            assert layer.cache.v_head_dim >= 1


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*NAMES, "model_type"]), VALUES, max_size=8))
def test_an_invented_config_is_read_or_refused(content: dict[str, Any]) -> None:
    read_or_refuse(content)


def test_paths_of_the_data_are_there() -> None:
    assert len(CONFIGS) >= 50
    assert all(isinstance(path, Path) for path in CONFIGS)
