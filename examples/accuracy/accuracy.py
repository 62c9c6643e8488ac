"""Every start of starts.csv, term by term, predicted beside logged: prints examples/accuracy/README.md.

python examples/accuracy/accuracy.py                # print it
python examples/accuracy/accuracy.py --write        # write it
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from start import Start, read_starts

from kvtool.system.files import write_atomic

HERE = Path(__file__).parent
INTRODUCTION = """\
# How near the budget comes

Starts of vLLM on H100s, each term as kvtool predicts it beside what the log has. `python examples/accuracy/accuracy.py`
prints this page. The logs are public: jgchn/llm-d-planner (Apache-2.0), its history in 2026, as
[starts.csv](starts.csv).

Memory of the card and utilisation are the log's. GiB, predicted / logged. The pool is that of the weights as logged;
with kvtool's own weights it stands beside it, where the checkpoint's format is known. Under pipeline parallelism the
log tells the first stage, which samples nothing; tokens follow from the stage with the least."""
COLUMNS = (
    *("vLLM", "model", "tp", "pp", "dtype", "weights", "activations", "outside torch", "pool", "own pool"),
    *("tokens", "concurrency"),
)
OTHERS = """\
| who | mean | median | worst | of |
|---|---|---|---|---|
| llm-d-planner, its own predictions in the same logs | 6.7 % | 3.5 % | 60.8 % | pool |
| hf-mem 0.5.6, DeepSeek-V3 at 32k | | | 2,390 % | KV bytes (all layers taken as full attention) |
| hf-mem 0.5.6, Gemma-3-27B at 32k | | | 430 % | KV bytes |
| kvfit 0.3.0, DeepSeek-V3.2 at 32k | | | 10 % | KV bytes |
| VRAMScout 0.7.0, Gemma 4, by its own table | | | 36.7 % | KV bytes |"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write README.md here instead of printing it")
    text = "\n".join(page(read_starts(HERE))) + "\n"
    if parser.parse_args().write:
        write_atomic(HERE / "README.md", text.encode())
    else:
        print(text, end="")


def page(starts: list[Start]) -> Iterator[str]:
    yield INTRODUCTION
    yield ""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    yield from map(_line, starts)
    yield "\n## By term\n"
    yield "| term | starts | mean error | worst |"
    yield "|---|---|---|---|"
    yield from _errors(starts)
    yield (
        "\nActivations are worked out from vLLM's own code. What is outside of torch is fitted to these starts:\n"
        "its error is in sample. 0.20 and later also subtract CUDA graphs, which these do not."
    )
    yield "\n## Others\n"
    yield OTHERS


def _line(start: Start) -> str:
    row = start.row
    own = "" if start.own_pool_gib is None else f"{start.own_pool_gib:.2f}"
    cells = (
        *(row["vllm"], row["model"], row["tp"], row["pp"], row["dtype"].removeprefix("torch.")),
        _pair(start.weights_gib, start.logged("weights_memory_gib")),
        _pair(start.activation_gib, start.logged("activation_memory_gib")),
        _pair(start.runtime_gib, start.logged("non_torch_forward_gib")),
        _pair(start.pool_gib, start.logged("kv_cache_memory_gib")),
        own,
        f"{start.tokens:,} / {int(row['kv_cache_tokens']):,}",
        f"{start.concurrency:.2f} / {row['max_concurrency']}",
    )
    return "| " + " | ".join(cells) + " |"


def _pair(predicted: float | None, logged: float) -> str:
    return f"- / {logged:.2f}" if predicted is None else f"{predicted:.2f} / {logged:.2f}"


def _errors(starts: list[Start]) -> Iterator[str]:
    """A row for each term: relative errors, but GiB for what is outside of torch."""
    yield _error_row("weights", (start.error("weights_memory_gib", start.weights_gib) for start in starts))
    yield _error_row("activations", (start.error("activation_memory_gib", start.activation_gib) for start in starts))
    outside = [abs(start.runtime_gib - start.logged("non_torch_forward_gib")) for start in starts]
    yield f"| outside torch | {len(outside)} | {statistics.mean(outside):.3f} GiB | {max(outside):.2f} GiB |"
    yield _error_row(
        "pool, weights as logged", (start.error("kv_cache_memory_gib", start.pool_gib) for start in starts)
    )
    own = (start.error("kv_cache_memory_gib", start.own_pool_gib) for start in starts)
    yield _error_row("pool, own weights", own)
    yield _error_row("tokens", (start.error("kv_cache_tokens", start.tokens) for start in starts))


def _error_row(term: str, errors: Iterable[float | None]) -> str:
    known = [abs(error) for error in errors if error is not None]
    return f"| {term} | {len(known)} | {statistics.mean(known):.2%} | {max(known):.2%} |"


if __name__ == "__main__":
    main()
