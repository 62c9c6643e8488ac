from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.catalog.layer_spec import read_layer_spec
from kvtool.catalog.model import FullAttention, Indexer, Layer, OtherState, SharedAttention, SlidingAttention
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.size import size
from kvtool.system.errors import KvtoolError

SPEC = """
num_heads: 32
hidden_size: 4096
dtype: bfloat16
layers:
- {count: 2, kind: sliding, kv_heads: 8, k_head_dim: 128, v_head_dim: 128, window: 1024}
- kind: full
  kv_heads: 4
  k_head_dim: 192
  v_head_dim: 128
  indexer: {head_dim: 128, heads: 8, top_k_tokens: 2048, dtype: fp4}
- {kind: state, recurrent_elements: 1000, conv_elements: 24}
- {kind: shared, source_layer: 2}
- {kind: none}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_layers_written_out(tmp_path: Path) -> None:
    model = read_layer_spec(write(tmp_path, SPEC))
    sliding = SlidingAttention(kv_heads=8, k_head_dim=128, v_head_dim=128, window=1024)
    assert model.layers == (
        Layer(cache=sliding),
        Layer(cache=sliding),
        Layer(
            cache=FullAttention(kv_heads=4, k_head_dim=192, v_head_dim=128),
            indexer=Indexer(head_dim=128, heads=8, top_k_tokens=2048, dtype="fp4"),
        ),
        Layer(cache=OtherState(recurrent_elements=1000, conv_elements=24)),
        Layer(cache=SharedAttention(source_layer=2)),
        Layer(cache=None),
    )
    assert (model.id, model.attention, model.confidence) == ("mine", "gqa+sliding+state", "given")
    kv = size(model, options=SizeOptions(contexts=(8192,))).rows[0].kv
    assert kv.bytes_per_sequence == 2 * 1024 * 4096 + 8192 * (4 * 320 * 2 + 68) + 1024 * 2


def test_json_and_patterns_are_the_same_words(tmp_path: Path) -> None:
    block = {"kv_heads": 2, "k_head_dim": 8, "v_head_dim": 8}
    spec = {"num_heads": 4, "hidden_size": 32, "layers": "3 full", "full": block}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(spec))
    assert read_layer_spec(path).layers == (Layer(cache=FullAttention(**block)),) * 3


def test_a_catalogue_may_have_layers_written_out_too(tmp_path: Path) -> None:
    entry = "\n".join(f"  {line}" for line in SPEC.strip().splitlines())
    head = "schema: kvtool.models/1\nmodels:\n- id: a/b\n  source: me\n  confidence: high\n"
    assert load_catalogue(write(tmp_path, head + entry)).get("a/b").num_layers == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: full", "kind: ful"), "kind 'ful' is not known: did you mean full?"),
        (("kind: full", "kind: 7"), "kind '7' is not known: use one of full, sliding"),
        (("window: 1024", "windows: 1024"), "kind 'sliding' has no 'windows' (it has kv_heads"),
        ((", window: 1024", ""), "kind 'sliding' lacks window"),
        (("window: 1024", "window: 0"), "window 0 of kind 'sliding' is too small"),
        (("window: 1024", "window: -5"), "window is -5: must be from 0"),
        (("window: 1024", f"window: 0x{'f' * 6000}"), "window is a huge number: must be from 0"),
        (("window: 1024", "window: long"), "kind 'sliding': Expected `int`, got `str`"),
        (("kv_heads: 8", "kv_heads: 5"), "layer 0: 32 heads do not divide among 5 KV heads"),
        (("source_layer: 2", "source_layer: 5"), "layer 4 shares with layer 5, which keeps nothing before it"),
        (("count: 2", "count: 5000"), "count 5000 must be from 1, and 4096 layers in all"),
        (("dtype: fp4", "dtype: fp3"), "kind 'indexer': Invalid enum value 'fp3'"),
        (("{kind: none}", "{kind: none, window: 3}"), "kind 'none' has no 'window'"),
        (("num_heads: 32", "heads: 32"), "Object contains unknown field `heads`: write num_heads: 32"),
        (("hidden_size: 4096", ""), "missing required field `hidden_size`: write num_heads: 32, hidden_size: 4096"),
        (("layers:", "- layers:"), "is not YAML"),
        (("kind: full", "kind: [full]"), "is not known: did you mean full?"),
        ((SPEC, "[]"), "is not a layer spec: write num_heads: 32"),
        ((SPEC, "{num_heads: 1, hidden_size: 1, layers: []}"), "has no layers"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = write(tmp_path, SPEC.replace(*change))
    with pytest.raises(KvtoolError) as refused:
        read_layer_spec(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["a: &a [*a]", "&a {a: *a}", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"])
def test_aliases_are_refused_before_they_are_followed(tmp_path: Path, text: str) -> None:
    with pytest.raises(KvtoolError, match=r"line \d: alias \*a is not read"):
        read_layer_spec(write(tmp_path, text))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_in_one_line_or_sized(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(SPEC.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "mine.yaml"
    path.write_bytes(content)
    try:
        size(read_layer_spec(path), options=SizeOptions(contexts=(8192,)))
    except KvtoolError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message
