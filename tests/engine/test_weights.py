"""Where weights come from: drawn from a seed, safetensors, GGUF; and every way a checkpoint can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf.constants import MODEL_ARCH, GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.weights.gguf import GgufWeights
from kvtool.engine.weights.load import weight_source
from kvtool.engine.weights.safetensors import SafetensorsWeights
from kvtool.engine.weights.source import RandomWeights
from kvtool.kernels.cpu.native import native
from kvtool.kernels.cpu.products import QuantisedGatedLinear, QuantisedLinear
from kvtool.kernels.weights import GatedWeight, Weight
from kvtool.system.errors import KvtoolError
from tests.engine.conftest import SaveTiny
from tests.engine.gguf_file import write_gguf
from tests.engine.running import agreement, engine_of, generate, largest_difference, load, prompt
from tests.engine.tiny import MAX_POSITIONS, save_tiny

CPU = torch.device("cpu")
FP32 = {"dtype": torch.float32, "device": CPU}


def random_tensor(name: str, *shape: int, seed: int = 0) -> Tensor:
    return RandomWeights(seed=seed, **FP32).tensor(name, *shape)


def test_random_tensors_are_seeded_one_by_one() -> None:
    weights = RandomWeights(seed=3, **FP32)
    first = weights.tensor("a.weight", 8, 16)
    weights.tensor("b.weight", 8, 16)
    assert torch.equal(weights.tensor("a.weight", 8, 16), first)
    assert torch.equal(random_tensor("a.weight", 8, 16, seed=3), first)
    assert not torch.equal(random_tensor("b.weight", 8, 16, seed=3), first)
    assert not torch.equal(random_tensor("a.weight", 8, 16, seed=4), first)


def test_random_weights_keep_the_size_of_what_passes_through() -> None:
    drawn = random_tensor("a.weight", 512, 1024)
    assert abs(float(drawn.mean())) < 1e-3
    assert float(drawn.std()) == pytest.approx(1024**-0.5, rel=0.01)
    assert torch.equal(random_tensor("model.layers.0.input_layernorm.weight", 64), torch.ones(64))


def test_a_model_cut_to_fewer_layers_has_the_same_first_ones(tiny: SaveTiny) -> None:
    model = resolve_model(str(tiny("llama-3-gqa").folder))
    cut, whole = (
        LoadedModel(model, EngineConfig(dtype="fp32", device="cpu", num_layers=layers), max_positions=MAX_POSITIONS)
        for layers in (1, None)
    )
    assert (len(cut.transformer.layers), len(whole.transformer.layers)) == (1, 3)
    assert torch.equal(cut.transformer.layers[0].attention.qkv.weight, whole.transformer.layers[0].attention.qkv.weight)
    assert torch.equal(cut.transformer.head.weight, whole.transformer.head.weight)
    assert "only the first 1 of 3 layers ran (--num-layers)" in cut.assumptions()


def test_random_weights_run_every_kind_of_attention(tiny: SaveTiny) -> None:
    for name in ("mistral-window", "qwen2", "qwen3-moe", "deepseek-v3-yarn", "gemma3", "gpt-oss", "gpt2", "opt"):
        model = resolve_model(str(tiny(name).folder))
        loaded = LoadedModel(model, EngineConfig(device="cpu", seed=5), max_positions=MAX_POSITIONS)
        once, again = (generate(engine_of(loaded), [prompt(20)], max_tokens=5)[0] for _ in range(2))
        assert once.output_ids == again.output_ids
        assert bool(torch.stack(once.logits).isfinite().all())
        assert any("weights are random (seed 5)" in line for line in loaded.assumptions())


@pytest.mark.parametrize("name", ["llama-3-gqa", "deepseek-v3", "gpt2"])
def test_a_step_reads_each_dense_weight_once_in_its_order(tiny: SaveTiny, name: str) -> None:
    """In fp32 nothing is packed: what is read are the products of each layer, one after another, and then the head."""
    transformer = load(tiny(name).folder).transformer
    places = [weight.data_ptr() for weight in transformer.weights_read()]
    assert len(set(places)) == len(places)
    mlps = [vars(layer.mlp).values() for layer in transformer.layers]
    held = [x for parts in mlps for x in parts if isinstance(x, Weight | GatedWeight)]
    order = [places.index(x.weight.data_ptr()) for x in held]
    assert order == sorted(order)
    assert order
    assert places[-1] == transformer.head.weight.data_ptr()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_generators_do_not_take_is_refused(seed: int) -> None:
    with pytest.raises(KvtoolError, match=f"seed {seed} must be from 0 to 4294967295"):
        EngineConfig(seed=seed)


@pytest.fixture
def folder(tiny: SaveTiny, tmp_path: Path) -> Path:
    """A copy of a tiny llama that a test may damage."""
    return Path(shutil.copytree(tiny("llama-3-gqa").folder, tmp_path / "model"))


def rewrite(folder: Path, name: str, tensor: Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def source_of(folder: Path) -> SafetensorsWeights:
    return SafetensorsWeights(folder, resolve_model("llama-3.1-8b"), **FP32)


def assert_one_line(error: pytest.ExceptionInfo[KvtoolError]) -> None:
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_checkpoint_in_several_files_is_one(tiny: SaveTiny, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    half = len(tensors) // 2
    (folder / "model.safetensors").unlink()
    save_file(dict(list(tensors.items())[:half]), folder / "model-00001-of-00002.safetensors")
    save_file(dict(list(tensors.items())[half:]), folder / "model-00002-of-00002.safetensors")
    sequence = generate(engine_of(load(folder)), [prompt(20)], max_tokens=2)[0]
    assert largest_difference(tiny("llama-3-gqa"), sequence) < 1e-4


def test_a_missing_tensor_is_named(folder: Path) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    rewrite(folder, name, None)
    with pytest.raises(KvtoolError, match=rf"no tensor '{name}': did you mean .*v_proj.weight") as error:
        load(folder)
    assert_one_line(error)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    rewrite(folder, "model.norm.weight", torch.ones(63))
    with pytest.raises(KvtoolError, match=r"'model.norm.weight' has shape \[63\], but the config says \[64\]") as error:
        load(folder)
    assert_one_line(error)


def test_a_quantised_tensor_is_refused_by_its_dtype(folder: Path) -> None:
    rewrite(folder, "model.norm.weight", torch.ones(64, dtype=torch.int8))
    with pytest.raises(KvtoolError, match=r"'model.norm.weight' is stored as torch.int8: the engine runs") as error:
        load(folder)
    assert_one_line(error)


def packed(codes: Tensor) -> Tensor:
    """int8 [out, in] as `pack-quantized` keeps it: bytes around 128, the first lowest in its word."""
    return (codes.int() + 128).to(torch.uint8).view(torch.int32)


def store_int8(folder: Path, whole: Path, *, words: bool) -> None:
    """A decoder's products as compressed-tensors stores them in int8; `whole` gets the folder that they stand for."""
    shutil.copytree(folder, whole)
    stored, meant = (load_file(folder / "model.safetensors") for _ in range(2))
    for name in [name for name in stored if "_proj" in name and name.endswith(".weight")]:
        weight = stored.pop(name)
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        codes = (weight / scale).round().to(torch.int8)
        meant[name] = codes.float() * scale
        stored[f"{name}_scale"] = scale
        stored |= {f"{name}_packed": packed(codes), f"{name}_shape": torch.tensor(codes.shape)} if words else {}
        stored |= {} if words else {name: codes}
    save_file(stored, folder / "model.safetensors")
    save_file(meant, whole / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("words", [False, True])
def test_int8_of_compressed_tensors_is_what_its_codes_and_scales_stand_for(
    folder: Path, tmp_path: Path, words: bool
) -> None:
    whole = tmp_path / "whole"
    store_int8(folder, whole, words=words)
    quantised, plain = (generate(engine_of(load(path)), [prompt(20)], max_tokens=4)[0] for path in (folder, whole))
    assert torch.equal(torch.stack(quantised.logits), torch.stack(plain.logits))

    loaded = load(folder, dtype="bf16")
    kernels, layer = native(), loaded.transformer.layers[0]
    pays = kernels is not None and kernels.quantised_pays
    assert isinstance(layer.attention.qkv.packed, QuantisedLinear) == pays
    assert isinstance(layer.mlp.inner.packed, QuantisedGatedLinear) == pays
    assert "activations stay in bf16, also where the checkpoint would round them to fewer bits" in loaded.assumptions()
    narrow = generate(engine_of(loaded), [prompt(20)], max_tokens=1)[0].logits[0].float()
    assert float((narrow - plain.logits[0]).square().mean().sqrt() / plain.logits[0].std()) < 0.04


def test_int8_of_latent_attention_is_multiplied_as_it_is_stored(tiny: SaveTiny, tmp_path: Path) -> None:
    """Its one product of the query and of the latent, whose rows of pairs were put into halves."""
    folder, whole = tmp_path / "int8", tmp_path / "whole"
    shutil.copytree(tiny("deepseek-v3").folder, folder)
    store_int8(folder, whole, words=False)
    dense = {"num_layers": 1}  # no expert is chosen otherwise for a rounding
    quantised, plain = (
        generate(engine_of(load(path, **dense)), [prompt(20)], max_tokens=4)[0] for path in (folder, whole)
    )
    assert torch.equal(torch.stack(quantised.logits), torch.stack(plain.logits))

    loaded = load(folder, dtype="bf16", **dense)
    kernels, projection = native(), loaded.transformer.layers[0].attention.inner
    pays = kernels is not None and kernels.quantised_pays
    assert isinstance(projection.inner.packed, QuantisedLinear) == pays
    saving = projection.inner.weight.nbytes // 2 - 4 * len(projection.inner.weight)  # a scale in fp32 a row
    assert (loaded.transformer.saved_bytes(1) >= saving) == pays
    found = torch.stack(generate(engine_of(loaded), [prompt(20)], max_tokens=4)[0].logits).float()
    exact = torch.stack(plain.logits)
    assert float((found - exact).square().mean().sqrt() / exact.std()) < 0.04


def test_other_weights_of_compressed_tensors_are_refused_by_what_they_are(folder: Path, tmp_path: Path) -> None:
    store_int8(folder, tmp_path / "whole", words=True)
    name = "model.layers.1.mlp.down_proj.weight"
    shape = load_file(tmp_path / "whole" / "model.safetensors")[name].shape
    for ending, tensor, words in (
        ("zero_point", torch.ones(shape[0], 1, dtype=torch.int8), "has zero points"),
        ("scale", torch.ones(shape[0], 3), rf"has {3 * shape[0]} scales for {shape[0]} rows"),
        ("packed", torch.ones(shape[0], shape[1] // 8, dtype=torch.int32), "is packed in other than 8 bits"),
    ):
        damaged = Path(shutil.copytree(folder, tmp_path / ending))
        tensors = load_file(damaged / "model.safetensors")
        save_file(tensors | {f"{name}_{ending}": tensor}, damaged / "model.safetensors")
        with pytest.raises(
            KvtoolError, match=rf"'{name}' {words}: the engine runs int8 of compressed-tensors"
        ) as error:
            load(damaged)
        assert_one_line(error)


@pytest.mark.parametrize("kept_bytes", [0, 5, 8, 200, 20_000])
def test_a_truncated_safetensors_file_is_refused(folder: Path, kept_bytes: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(KvtoolError, match=r"model\.safetensors is not a readable safetensors file") as error:
        source_of(folder)
    assert_one_line(error)


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match=r"has no \*\.safetensors file: point --weights at a folder") as error:
        SafetensorsWeights(tmp_path, resolve_model("llama-3.1-8b"), **FP32)
    assert_one_line(error)


def test_weights_that_are_nothing_known_are_refused(tiny: SaveTiny, tmp_path: Path) -> None:
    model = resolve_model(str(tiny("llama-3-gqa").folder))
    (tmp_path / "model.bin").write_bytes(b"")
    for weights in ("randm", str(tmp_path / "model.bin"), str(tmp_path / "missing.gguf")):
        with pytest.raises(KvtoolError, match=r"is neither 'random', a folder with safetensors, nor a \.gguf") as error:
            weight_source(model, EngineConfig(weights=weights), torch.float32, CPU)
        assert_one_line(error)


GGUF_MODELS = {
    "llama-2-mha": MODEL_ARCH.LLAMA,
    "llama-mqa-tied": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "mixtral": MODEL_ARCH.LLAMA,
    "qwen3-moe": MODEL_ARCH.QWEN3MOE,
}


@pytest.mark.parametrize("quantisation", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("name", "arch"), GGUF_MODELS.items(), ids=list(GGUF_MODELS))
def test_a_gguf_file_has_the_logits_of_what_it_holds(
    tmp_path: Path, name: str, arch: MODEL_ARCH, quantisation: str
) -> None:
    reference = save_tiny(name, tmp_path)
    write_gguf(reference.model, tmp_path / "model.gguf", arch, GGMLQuantizationType[quantisation])
    sequences = generate(engine_of(load(tmp_path / "model.gguf")), [prompt(40), prompt(3)], max_tokens=4)
    assert max(largest_difference(reference, sequence) for sequence in sequences) < 1e-4


@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_0", "Q4_1"])
def test_a_gguf_file_is_multiplied_as_it_is_stored_in_bf16(tmp_path: Path, quantisation: str) -> None:
    reference = save_tiny("llama-2-mha", tmp_path)
    write_gguf(reference.model, tmp_path / "model.gguf", MODEL_ARCH.LLAMA, GGMLQuantizationType[quantisation])
    loaded = load(tmp_path / "model.gguf", dtype="bf16")
    kernels, layer = native(), loaded.transformer.layers[0]
    pays = kernels is not None and kernels.quantised_pays
    assert isinstance(layer.attention.qkv.packed, QuantisedLinear) == pays
    assert isinstance(layer.mlp.inner.packed, QuantisedGatedLinear) == pays
    # Of 16 bits a weight, blocks of 32 keep their codes and one or two numbers of 16 bits.
    share = {"Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5}[quantisation] / 16
    params = 3 * (4 * 64 * 64 + 3 * 64 * 96) * 2  # bytes of the layers' products in bf16; 131 outputs are no blocks
    assert loaded.transformer.saved_bytes(1) == (round(params * (1 - share)) if pays else 0)
    assert loaded.transformer.saved_bytes(64) == 0
    if pays:  # what a step reads, and others can too: the head's layout is oneDNN's
        read = sum(weight.nbytes for weight in loaded.transformer.weights_read())
        assert read == params - loaded.transformer.saved_bytes(1)
    for sequence in generate(engine_of(loaded), [prompt(40), prompt(3), prompt(2)], max_tokens=6):
        expected = reference.logits(sequence.token_ids[:-1])[sequence.prompt_tokens - 1 :]
        difference = torch.stack(sequence.logits).float() - expected
        assert float(difference.square().mean().sqrt() / expected.std()) < 0.04


@pytest.mark.parametrize(
    ("name", "quantisation"), [*zip(GGUF_MODELS, ["Q4_1", "Q8_0", "Q4_0", "Q4_1", "Q8_0", "Q8_0"], strict=True)]
)
def test_a_quantised_file_gives_the_tokens_of_what_it_holds_in_bf16(
    tmp_path: Path, name: str, quantisation: str
) -> None:
    reference = save_tiny(name, tmp_path)
    write_gguf(reference.model, tmp_path / "model.gguf", GGUF_MODELS[name], GGMLQuantizationType[quantisation])
    engine = engine_of(load(tmp_path / "model.gguf", dtype="bf16"))
    shares = [agreement(reference, one) for one in generate(engine, [prompt(40), prompt(3), prompt(2)], max_tokens=8)]
    assert sum(shares) / len(shares) >= (0.8 if name in ("mixtral", "qwen3-moe") else 1.0)


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    write_gguf(save_tiny("llama-2-mha", tmp_path).model, tmp_path / "model.gguf", MODEL_ARCH.LLAMA)
    return tmp_path / "model.gguf"


def gguf_source(path: Path) -> GgufWeights:
    return GgufWeights(path, head_dim=16, **FP32)


def test_a_gguf_tensor_that_is_missing_or_of_another_shape_is_named(gguf_path: Path) -> None:
    weights = gguf_source(gguf_path)
    with pytest.raises(KvtoolError, match=r"no tensor 'blk\.3\.attn_q\.weight' \(for 'model\.layers\.3\.") as error:
        weights.tensor("model.layers.3.self_attn.q_proj.weight", 64, 64)
    assert_one_line(error)
    with pytest.raises(KvtoolError, match=r"no tensor 'blk\.0\.ffn_up_exps\.weight'") as error:
        weights.tensor("model.layers.0.mlp.experts.1.up_proj.weight", 96, 64)
    assert_one_line(error)
    with pytest.raises(KvtoolError, match=r"'output_norm\.weight' has shape \[64\], but .* says \[32\]") as error:
        weights.tensor("model.norm.weight", 32)
    assert_one_line(error)


@pytest.mark.parametrize("kept_bytes", [0, 3, 30, 400, 1500, 100_000])
def test_a_truncated_gguf_file_is_refused(gguf_path: Path, kept_bytes: int) -> None:
    gguf_path.write_bytes(gguf_path.read_bytes()[:kept_bytes])
    with pytest.raises(KvtoolError, match=r"model\.gguf is not a readable GGUF file") as error:
        gguf_source(gguf_path)
    assert_one_line(error)


def test_gguf_weights_of_latent_attention_are_refused(tiny: SaveTiny, gguf_path: Path) -> None:
    model = resolve_model(str(tiny("deepseek-v3").folder))
    with pytest.raises(KvtoolError, match="the engine reads GGUF weights of MHA, MQA and GQA models"):
        weight_source(model, EngineConfig(weights=str(gguf_path)), torch.float32, CPU)
