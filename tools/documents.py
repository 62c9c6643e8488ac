"""Writes what `size`, `verify` and `compare` answer today, so that a change that must not change them can show it.

    python tools/documents.py before      at one commit: a file for every question, into the folder `before`
    python tools/documents.py after       at the next
    diff -r before after                  prints nothing where nothing changed

Every model of the catalogue is sized at three contexts, in two dtypes, on one rank and on eight, every third one by
the plans of vLLM and SGLang too; every log of the tests is verified, every report of the examples compared.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.cli import main as kvtool

ROOT = Path(__file__).parents[1]
GRID = ["--context", "1k,32k,128k", "--kv-cache-dtype", "auto,fp8"]
PLAN = ["--gpu", "h200", "--max-model-len", "8k", "--context", "8k"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for arguments in questions():
        name = re.sub(r"[^a-z0-9.]+", "-", " ".join(arguments).lower().replace(str(ROOT).lower(), ""))[:200].strip("-")
        (folder / f"{name}.txt").write_text(answer(arguments))


def questions() -> Iterator[list[str]]:
    for index, model in enumerate(sorted(entry.id for entry in load_catalogue().entries())):
        for tp in ("1", "8"):
            yield ["size", model, *GRID, "--tp", tp]
            if index % 3 == 0:
                yield from (["size", model, *PLAN, "--tp", tp, "--engine", engine] for engine in ("vllm", "sglang"))
    for log in sorted((ROOT / "tests" / "verify" / "logs").iterdir()):
        yield from (["verify", str(log)], ["verify", str(log), "llama-3.1-8b", "--gpu", "h100"])
    reports = sorted(str(path) for path in (ROOT / "examples" / "reports").glob("*/bench.json"))
    yield from (["compare", reports[0], other] for other in reports)
    yield [
        "compare",
        "llama-3.1-8b",
        "qwen3-32b",
        "deepseek-v3",
        "--context",
        "8k,128k",
        "--kv-cache-dtype",
        "auto,fp8",
    ]


def answer(arguments: list[str]) -> str:
    """The exit code, the document and the messages of one command."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    sys.argv = ["kvtool", *arguments, "--json"]
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            kvtool()
        except SystemExit as stop:
            code = stop.code
    printed = b"".join(stream.buffer.getvalue() for stream in (out, err)).decode()  # type: ignore[attr-defined]
    return f"{code}\n{printed}".replace(str(ROOT), "")


if __name__ == "__main__":
    main()
