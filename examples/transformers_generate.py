"""kvtool's engine against transformers' `generate` on the same weights, prompts and threads, in turns.

    python examples/transformers_generate.py                 # smollm2-135m's shape, random weights, bf16
    python examples/transformers_generate.py --input-len 512,4096 --batch-size 1,8 --rounds 5

Both run greedily in one process: `kvtool bench --peers transformers`, its result as ratios of ours to theirs. TTFT is
the time until every prompt has its first token, TPOT the mean time of the tokens after it; the table shows medians
over rounds.
"""

from __future__ import annotations

import argparse
from statistics import median

import torch
import transformers

from kvtool.bench.engines.race import Entrant, compared, entrants
from kvtool.bench.harness import pages_for
from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.results import BenchPeer
from kvtool.workloads import fixed


def compare(
    loaded: LoadedModel, peers: list[Entrant], *, input_len: int, output_len: int, batch_size: int, rounds: int
) -> BenchPeer:
    """One cell of the grid; the first round warms both up."""
    batches = [
        fixed(
            batch_size=batch_size,
            input_len=input_len,
            output_len=output_len,
            vocab_size=loaded.vocab_size,
            seed=turn,
        )
        for turn in range(rounds + 1)
    ]
    engine = Engine(loaded, num_pages=pages_for(batches[0], loaded.config.block_size))
    engine.prepare([batch_size])
    (peer,) = compared(engine, peers, batches, warmup=1)
    if not peer.turns:
        raise SystemExit(peer.note)
    return peer


def row(peer: BenchPeer, input_len: int, batch_size: int) -> str:
    """One row of the table."""
    names = ("tpot_s", "ours_tpot_s", "ttft_s", "ours_ttft_s")
    tpot, ours_tpot, ttft, ours_ttft = (1e3 * median(getattr(turn, name) for turn in peer.turns) for name in names)
    return (
        f"| {input_len} | {batch_size} | {ours_tpot:.1f} | {tpot:.1f} | {ours_tpot / tpot:.2f}x "
        f"| {ours_ttft:.0f} | {ttft:.0f} | {ours_ttft / ttft:.2f}x |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a safetensors folder (default: random weights)")
    parser.add_argument("--input-len", default="512", help="prompt tokens, a comma list")
    parser.add_argument("--batch-size", default="1,8", help="prompts at a time, a comma list")
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    input_lens = [int(length) for length in arguments.input_len.split(",")]
    batch_sizes = [int(size) for size in arguments.batch_size.split(",")]
    longest = max(input_lens) + arguments.output_len
    config = EngineConfig(
        weights=arguments.weights or "random",
        dtype="bf16",
        threads=arguments.threads,
        prefill_first=True,
        prefix_caching=False,
    )
    model = resolve_model(arguments.weights or "smollm2-135m")
    loaded = LoadedModel(model, config, max_positions=longest + 1)
    with entrants(loaded, ["transformers"], max_tokens=longest, max_batch=max(batch_sizes)) as peers:
        print(
            f"torch {torch.__version__}, transformers {transformers.__version__}, {loaded.num_threads} threads, bf16\n"
        )
        print("| input | batch | TPOT ms kvtool | transformers | ratio | TTFT ms kvtool | transformers | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for input_len in input_lens:
            for batch_size in batch_sizes:
                peer = compare(
                    loaded,
                    peers,
                    input_len=input_len,
                    output_len=arguments.output_len,
                    batch_size=batch_size,
                    rounds=arguments.rounds,
                )
                print(row(peer, input_len, batch_size), flush=True)


if __name__ == "__main__":
    main()
