"""What works without a package works without it: each is hidden from a process, as if it were not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

hidden = sys.argv.pop(1).split(",")
sys.meta_path.insert(0, Hidden())
from kvtool.cli import main
main()
"""
TINY = ("smollm2-135m", "--num-layers", "1", "--device", "cpu")
GENERATE = ("generate", *TINY, "--prompt-ids", "1,2,3", "--output-len", "2")
SIZE = ("size", "llama-3.1-8b", "--gpu", "h100")


def without(packages: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, packages, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("packages", "command"),
    [
        ("torch,triton,numpy,pandas,matplotlib,safetensors,huggingface_hub,tokenizers,pynvml,gguf", SIZE),
        (
            "torch,triton,numpy,pandas,matplotlib,safetensors,huggingface_hub,tokenizers,pynvml,gguf",
            ("models", "qwen3"),
        ),
        ("triton,pandas,matplotlib,huggingface_hub,tokenizers,pynvml,gguf,transformers", GENERATE),
        ("triton,pandas,matplotlib,huggingface_hub,tokenizers,pynvml,gguf,transformers", ("env", "--device", "cpu")),
    ],
)
def test_a_command_does_without_what_it_has_no_use_for(packages: str, command: tuple[str, ...]) -> None:
    done = without(packages, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights of a tiny model, with a tokenizer.json beside them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    config = transformers.LlamaConfig(**shape, vocab_size=16, num_key_value_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_token_ids_need_no_tokenizers_and_text_names_them(folder: Path) -> None:
    run = ("generate", folder, "--device", "cpu", "--dtype", "fp32", "--output-len", "2")
    ids = without("tokenizers", *run, "--prompt-ids", "1,2,3")
    assert ids.returncode == 0, ids.stderr
    text = without("tokenizers", *run, "--prompt", "hello")
    assert (text.returncode, text.stdout) == (2, "")
    assert "needs the tokenizers package" in text.stderr
    assert "--prompt-ids" in text.stderr


def test_what_needs_a_package_names_it(tmp_path: Path) -> None:
    out = without("matplotlib", *SIZE, "--out", tmp_path)
    assert out.returncode == 2
    assert "matplotlib" in out.stderr
    assert "weights 14.96 GiB" in out.stdout
    assert list(tmp_path.iterdir()) == []
    hub = without("huggingface_hub", "size", "someone/something")
    assert hub.returncode == 2
    assert "huggingface_hub" in hub.stderr
