from __future__ import annotations

import pytest

from kvtool.catalog.resolve import inline_model, resolve_model
from kvtool.compare.models import compare_models
from kvtool.results import MatrixDocument, encode, read_document
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.system.errors import KvtoolError

LAYOUTS = [Parallel(tp=1), Parallel(tp=8)]


def test_every_model_gets_every_setting() -> None:
    """128 KiB a token: 2 x 32 layers x 8 heads x 128 x 2 B for Llama-3.1-8B; 36 layers make 144 KiB for Qwen3-8B."""
    options = SizeOptions(contexts=(8192, 32768), kv_cache_dtypes=("bf16", "fp8"))
    found = compare_models([resolve_model("llama-3.1-8b"), resolve_model("qwen3-8b")], options, LAYOUTS)
    settings = [(r.inputs.tp, r.inputs.kv_cache_dtype, r.inputs.context) for r in found.rows]
    assert len(settings) == 16
    assert len(set(settings)) == 8
    assert settings[:8] == settings[8:]
    assert found.baseline == found.rows[0].model.id
    assert [found.rows[0].kv.bytes_per_gpu, found.rows[8].kv.bytes_per_gpu] == [8192 * 128 * 1024, 8192 * 144 * 1024]
    assert found.warnings == []


def test_a_matrix_can_be_written_and_read_back(tmp_path) -> None:
    shapes = [inline_model(layers=n, heads=8, kv_heads=8, head_dim=64) for n in (2, 3)]
    found = compare_models(shapes, SizeOptions(contexts=(64,)), LAYOUTS)
    path = tmp_path / "compare.json"
    path.write_bytes(encode(found))
    assert read_document(path, MatrixDocument) == found


def test_a_context_beyond_a_model_is_warned_of() -> None:
    models = [resolve_model("qwen3-8b"), resolve_model("llama-3.1-8b")]
    (warning,) = compare_models(models, SizeOptions(contexts=(100_000,)), LAYOUTS[:1]).warnings
    assert "Qwen3-8B" in warning
    assert "100000" in warning


def test_what_cannot_be_compared_is_refused() -> None:
    model = resolve_model("llama-3.1-8b")
    with pytest.raises(KvtoolError, match="named twice"):
        compare_models([model, model], SizeOptions(contexts=(64,)), LAYOUTS)
    with pytest.raises(KvtoolError, match="tp 3"):
        compare_models([model], SizeOptions(contexts=(64,)), [Parallel(tp=3)])


def test_a_layout_that_one_model_cannot_take_is_left_out_of_its_rows() -> None:
    """14 query heads of Qwen2.5-0.5B are not dealt out to 8 ranks; 32 of Llama-3.1-8B are."""
    models = [resolve_model(name) for name in ("qwen2.5-0.5b", "llama-3.1-8b")]
    found = compare_models(models, SizeOptions(contexts=(64,)), LAYOUTS)
    assert [(row.model.id, row.inputs.tp) for row in found.rows] == [
        (models[0].id, 1), (models[1].id, 1), (models[1].id, 8)
    ]  # fmt: skip
    assert [(one.model, one.num_gpus) for one in found.refused] == [(models[0].id, 8)]
    assert found.warnings == ["left out: tp 8 does not divide the 14 query heads of Qwen/Qwen2.5-0.5B"]
    with pytest.raises(KvtoolError, match="tp 3"):
        compare_models(models, SizeOptions(contexts=(64,)), [Parallel(tp=3)])
