"""Checkpoints under every name and layout they are published in, and how a wrong one is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from kvtool.engine.weights.mxfp4 import dequantised
from kvtool.system.errors import KvtoolError
from tests.engine.conftest import SaveTiny
from tests.engine.running import engine_of, generate, largest_difference, load, prompt

Tensors = dict[str, Tensor]


@pytest.fixture
def changed(tiny: SaveTiny, tmp_path: Path) -> Callable[[str, Callable[[Tensors], Tensors]], Path]:
    """A copy of a tiny model's folder whose tensors went through a function."""

    def change(name: str, function: Callable[[Tensors], Tensors]) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny(name).folder, folder)
        tensors = function(load_file(folder / "model.safetensors"))
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
        return folder

    return change


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        key.replace(old, new, 1) if key.startswith(old) else key: value for key, value in tensors.items()
    }


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("gemma3", "model.", "model.language_model."),  # Gemma 3 with images, as transformers 5 saves it
        ("gemma3", "model.", "language_model.model."),  # and as it is published
        ("gpt2", "transformer.", ""),  # openai-community/gpt2
        ("opt", "model.decoder.", "decoder."),  # facebook/opt-125m
        ("llama-mqa-tied", "model.", ""),
    ],
)
def test_a_checkpoint_may_begin_its_names_in_another_way(
    tiny: SaveTiny, changed: Callable[..., Path], name: str, old: str, new: str
) -> None:
    folder = changed(name, renamed(old, new))
    sequence = generate(engine_of(load(folder)), [prompt(20)], max_tokens=2)[0]
    assert largest_difference(tiny(name), sequence) < 1e-4


@pytest.mark.parametrize(
    ("name", "tensor", "dim", "message"),
    [
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight", 0, r"qkv_proj.weight' has shape \[129, 64\].* \[64, 64\]"),
        (
            "phi3",
            "model.layers.0.mlp.gate_up_proj.weight",
            0,
            r"gate_up_proj.weight' has shape \[97, 64\].* \[96, 64\]",
        ),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", 1, r"c_attn.weight' has shape \[193, 64\].* \[64, 64\]"),
        ("gpt-oss", "model.layers.0.mlp.experts.down_proj", 1, r"down_proj' has shape \[64, 97\].* \[64, 96\]"),
    ],
)
def test_a_stack_of_another_height_is_named(
    changed: Callable[..., Path], name: str, tensor: str, dim: int, message: str
) -> None:
    def longer(tensors: Tensors) -> Tensors:
        found = tensors[tensor]
        return tensors | {tensor: torch.cat((found, found.narrow(dim, 0, 1)), dim=dim)}

    with pytest.raises(KvtoolError, match=message):
        load(changed(name, longer))


def test_a_checkpoint_of_fewer_experts_is_named(changed: Callable[..., Path]) -> None:
    tensor = "model.layers.0.mlp.experts.down_proj"
    folder = changed("gpt-oss", lambda tensors: tensors | {tensor: tensors[tensor][:5]})
    with pytest.raises(KvtoolError, match=rf"'{tensor}' has 5 experts, but the config says more"):
        load(folder)


def drawn_mxfp4(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    """blocks [..., 16] and exponents of values near one."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(121, 126, shape, generator=generator, dtype=torch.uint8)


def test_mxfp4_is_read_as_transformers_reads_it() -> None:
    blocks, scales = drawn_mxfp4(3, 8, 5, seed=0)
    expected = convert_moe_packed_tensors(blocks, scales)
    for expert in range(3):
        assert torch.equal(dequantised(blocks[expert], scales[expert]).T, expected[expert])


def test_a_checkpoint_in_mxfp4_is_its_dequantised_one(changed: Callable[..., Path]) -> None:
    """As openai/gpt-oss-20b: gate and up projections, and down ones, as blocks and scales of all experts."""
    packed: Tensors = {}
    plain: Tensors = {}
    for layer in range(4):
        for part, rows, columns in (("gate_up_proj", 192, 64), ("down_proj", 64, 96)):
            name = f"model.layers.{layer}.mlp.experts.{part}"
            blocks, scales = drawn_mxfp4(6, rows, columns // 32, seed=layer)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            plain[name] = convert_moe_packed_tensors(blocks, scales).float()

    def without_experts(tensors: Tensors) -> Tensors:
        return {key: value for key, value in tensors.items() if key not in plain}

    folder = changed("gpt-oss", lambda tensors: without_experts(tensors) | packed)
    in_mxfp4 = generate(engine_of(load(folder)), [prompt(20)], max_tokens=4)[0]
    save_file(without_experts(load_file(folder / "model.safetensors")) | plain, folder / "model.safetensors")
    dense = generate(engine_of(load(folder)), [prompt(20)], max_tokens=4)[0]
    assert in_mxfp4.output_ids == dense.output_ids
    assert torch.equal(torch.stack(in_mxfp4.logits), torch.stack(dense.logits))
