"""`kvtool bench --url` beside `vllm bench serve`, on the same prompts to the same server, turn by turn.

Needs a vLLM server that runs with VLLM_SERVER_DEV_MODE=1 (its cache is emptied before every turn) and serves its model
under a name that kvtool knows (--served-model-name smollm2-135m), the folder of that model with its tokenizer, and an
environment that has both vLLM and kvtool: `python race.py http://127.0.0.1:8000 FOLDER OUT`. Each call adds a folder of
turns to OUT, run-1, run-2 and so on, with bench.json (ours) and vllm_bench_serve.json (theirs, as that tool writes it),
and prints the ratios over all turns of OUT; `python race.py OUT` prints them again.

A server on two cores changes its speed for seconds at a time, by a half and more. So a turn is two prompts, about a
second a tool; the medians of both tools make a ratio, and the median of the turns' ratios counts. Give the server a
core, and both tools another: `taskset -c 0 vllm serve ...` with OMP_NUM_THREADS=1, `taskset -c 1 python race.py ...`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.engines.server.case import Ran, case_of
from kvtool.bench.engines.server.drive import Driver
from kvtool.bench.engines.server.hits import hits_of
from kvtool.bench.engines.server.options import ServerOptions
from kvtool.bench.engines.server.overhead import client_overhead_ms
from kvtool.bench.engines.server.words import said_of
from kvtool.catalog.resolve import resolve_model
from kvtool.compare.foreign.vllm_serve import read_vllm_serve
from kvtool.engine.endpoint.address import parse_address
from kvtool.engine.endpoint.client import Client
from kvtool.engine.endpoint.server import discover, reset_cache
from kvtool.engine.endpoint.wire import Asking, Chat, chat_words
from kvtool.engine.text import FileTokenizer
from kvtool.machine.environment import describe_client
from kvtool.machine.stats import Estimate, paired_median_difference
from kvtool.results import BenchDocument, Sample, encode, read_document

TURNS, PROMPTS, INPUT_LEN, OUTPUT_LEN = 15, 2, 256, 8
OURS, THEIRS = "bench.json", "vllm_bench_serve.json"


def main() -> None:
    """One argument prints the ratios of a folder, three measure."""
    if len(sys.argv) == 4:
        race(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    for line in lines(Path(sys.argv[-1])):
        print(line)


def race(url: str, folder: Path, out: Path) -> None:
    """Both tools in turns, the other one first in every second turn, behind a turn of each that counts nowhere."""
    client = Client(parse_address(url))
    server = discover(client)
    model = resolve_model(server.model)
    tokenizer = FileTokenizer(folder / "tokenizer.json")
    wire = Chat(chat_words(tokenizer, model.vocab_size or 0))
    options = ServerOptions(
        input_lens=(INPUT_LEN,), output_len=OUTPUT_LEN, num_prompts=PROMPTS, concurrency=1, num_iters=TURNS, chat=True,
        reset_cache=True,
    )  # fmt: skip
    driver = Driver(client=client, wire=wire, asking=Asking(model=server.model))
    runs, theirs = [], []
    for turn in range(TURNS + 1):
        plan = options.plan(options.grid[0], server, wire.vocab_size, turn)
        prompts = [wire.start(one.own_ids)[0]["content"] for one in plan.turns]
        for ours in (True, False) if turn % 2 else (False, True):
            reset_cache(client, server)
            if ours:
                runs.append(driver.drive(plan, concurrency=1))
            else:
                theirs.append(serve_bench(url, server.model, folder, prompts))
    runs, theirs = runs[1:], theirs[1:]
    ran = Ran(case=options.grid[0], plan=runs[0].plan, runs=runs, hits=hits_of(runs, [None] * len(runs)))
    document = BenchDocument(
        environment=describe_client(),
        definitions=DEFINITIONS,
        assumptions=said_of(server, options, driver.asking),
        cases=[case_of(ran, model, server, options, None, client_overhead_ms())],
    )
    out = out / f"run-{1 + len(list(out.glob('run-*')))}"
    out.mkdir(parents=True)
    (out / OURS).write_bytes(encode(document))
    (out / THEIRS).write_text(json.dumps(theirs, indent=1) + "\n")


def serve_bench(url: str, model: str, folder: Path, prompts: list[str]) -> dict[str, Any]:
    """What `vllm bench serve --save-detailed` writes of these prompts, one after another."""
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    with tempfile.TemporaryDirectory() as scratch:
        dataset = Path(scratch) / "prompts.jsonl"
        dataset.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        parser: argparse.ArgumentParser = FlexibleArgumentParser()
        add_cli_args(parser)
        asked = [
            *("--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions", "--model", model),
            *("--tokenizer", str(folder), "--dataset-name", "custom", "--dataset-path", str(dataset)),
            *("--num-prompts", str(len(prompts)), "--custom-output-len", str(OUTPUT_LEN), "--skip-chat-template"),
            *("--disable-shuffle", "--max-concurrency", "1", "--ignore-eos", "--temperature", "0", "--disable-tqdm"),
            *("--save-result", "--save-detailed", "--result-dir", scratch, "--result-filename", "result.json"),
        ]
        asyncio.run(main_async(parser.parse_args(asked)))
        found: dict[str, Any] = json.loads((Path(scratch) / "result.json").read_text())
    return found | {"tokenizer_id": folder.name}


def runs_of(folder: Path) -> list[Path]:
    """Those that OUT has so far."""
    return sorted(folder.glob("run-*"))


def turns_of(run: Path) -> tuple[list[list[Sample]], list[list[Sample]]]:
    """Samples of ours and theirs by turn, of one run."""
    (case,) = read_document(run / OURS, BenchDocument).cases
    ours: list[list[Sample]] = [[] for _ in range(1 + max(sample.iteration for sample in case.samples))]
    for sample in case.samples:
        ours[sample.iteration].append(sample)
    results = json.loads((run / THEIRS).read_text())
    theirs = [list(read_vllm_serve(result, THEIRS).cases[0].samples) for result in results]
    return ours, theirs


def ratios(folder: Path) -> dict[str, Estimate]:
    """Ours over theirs: the median over turns of the ratio of medians, with the 95 % bootstrap interval over turns."""
    runs = [turns_of(run) for run in runs_of(folder)]
    ours, theirs = ([turn for run in runs for turn in run[side]] for side in (0, 1))
    return {"TTFT": _ratio(ours, theirs, lambda s: s.ttft_s), "TPOT": _ratio(ours, theirs, lambda s: s.tpot_s or 0.0)}


def _ratio(ours: list[list[Sample]], theirs: list[list[Sample]], seconds: Callable[[Sample], float]) -> Estimate:
    logs = [[math.log(median(map(seconds, turn))) for turn in side] for side in (theirs, ours)]
    found = paired_median_difference(*logs)
    return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high))


def lines(folder: Path) -> Iterator[str]:
    """`TTFT: ours / theirs 1.01 (0.99 to 1.03)`."""
    for name, ratio in ratios(folder).items():
        yield f"{name}: ours / theirs {ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


if __name__ == "__main__":
    main()
