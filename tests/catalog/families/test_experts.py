from __future__ import annotations

from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import Moe
from kvtool.system.errors import KvtoolError
from tests.catalog.data import LLAMA


def made(**sizes: int) -> Moe:
    return Moe(num_experts=8, experts_per_token=2, **sizes)


def moe(model_type: str, **changes: object) -> Moe | None:
    values: dict[str, Any] = {**LLAMA, "model_type": model_type, "num_hidden_layers": 6, **changes}
    return model_from_config(values, id="t", source="t").moe


EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("llama", {}, None),
        ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2},
         made(intermediate_size=128)),
        ("qwen3_moe", EXPERTS, made(intermediate_size=32)),
        ("qwen3_moe", {**EXPERTS, "decoder_sparse_step": 2},
         made(intermediate_size=32, first_dense_layers=1, layer_step=2)),
        ("qwen3_moe", {**EXPERTS, "mlp_only_layers": [0, 1]},
         made(intermediate_size=32, first_dense_layers=2)),
        ("glm4_moe", {**EXPERTS, "n_shared_experts": 2, "first_k_dense_replace": 1},
         made(intermediate_size=32, shared_intermediate_size=64, first_dense_layers=1)),
        ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 48},
         made(intermediate_size=32, shared_intermediate_size=48)),
        ("hunyuan_v1_moe", {"num_experts": 8, "moe_topk": [2] * 6, "num_shared_expert": [1] * 6},
         made(intermediate_size=128, shared_intermediate_size=128)),
        ("glm4_moe", {**EXPERTS, "moe_layer_freq": [0, 0, 1, 1, 1, 1]},
         made(intermediate_size=32, first_dense_layers=2)),
        ("ernie4_5_moe", {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1,
                          "moe_layer_end_index": 5, "moe_layer_interval": 1},
         made(intermediate_size=32, first_dense_layers=1)),
        ("granitemoe", {"num_local_experts": 1, "num_experts_per_tok": 1}, None),
    ],
)  # fmt: skip
def test_experts_and_the_layers_that_have_them(
    model_type: str, changes: dict[str, object], expected: Moe | None
) -> None:
    assert moe(model_type, **changes) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**EXPERTS, "num_experts_per_tok": 9}, "'num_experts_per_tok' is 9: must be from 1 to 8"),
        ({**EXPERTS, "num_experts_per_tok": None}, "field 'num_experts_per_tok' is missing"),
        ({**EXPERTS, "mlp_only_layers": [2]}, "irregular layers"),
        ({**EXPERTS, "moe_intermediate_size": [32, 64]}, "'moe_intermediate_size' differs between layers"),
    ],
)
def test_experts_that_cannot_be_counted_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        moe("qwen3_moe", **changes)
