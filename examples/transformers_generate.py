"""kvtool's engine against transformers' `generate` on the same weights, prompts and threads, in turns.

    python examples/transformers_generate.py                 # smollm2-135m's shape, random weights, bf16
    python examples/transformers_generate.py --input-len 512,4096 --batch-size 1,8 --rounds 5

Both run greedily in one process. Each round runs both, the first one alternating. TTFT is the time until the first
logits, TPOT the mean time of the tokens after it; the table shows medians over rounds and their ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import transformers

from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from kvtool.units import ceil_div


class Clock(transformers.LogitsProcessor):
    """Notes when the logits of each step are there."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times_s.append(time.perf_counter())
        return scores


def smollm2_shaped() -> transformers.PreTrainedModel:
    """A Llama of SmolLM2-135M's shape with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def run_transformers(
    model: transformers.PreTrainedModel, prompts: torch.Tensor, output_len: int
) -> tuple[float, float]:
    """TTFT and TPOT in seconds."""
    clock = Clock()
    start_s = time.perf_counter()
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=output_len,
        min_new_tokens=output_len,
        do_sample=False,
        logits_processor=transformers.LogitsProcessorList([clock]),
    )
    times_s = clock.times_s
    return times_s[0] - start_s, (times_s[-1] - times_s[0]) / (len(times_s) - 1)


def run_kvtool(loaded: LoadedModel, prompts: torch.Tensor, output_len: int) -> tuple[float, float]:
    """TTFT and TPOT in seconds."""
    block_size = loaded.config.block_size
    pages = len(prompts) * ceil_div(prompts.shape[1] + output_len, block_size)
    engine = Engine(loaded, num_pages=pages)
    sequences = [engine.add(prompt, SamplingParams(max_tokens=output_len)) for prompt in prompts.tolist()]
    for _ in engine.run_until_idle():
        pass
    last = sequences[-1]
    return last.ttft_s, (last.e2e_s - last.ttft_s) / (output_len - 1)


def compare(folder: Path, input_len: int, batch_size: int, output_len: int, rounds: int) -> str:
    """One row of the table."""
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    config = EngineConfig(weights=str(folder), dtype="bf16", prefix_caching=False, prefill_first=True)
    ours = LoadedModel(resolve_model(str(folder)), config, max_positions=input_len + output_len)
    figures: dict[str, list[tuple[float, float]]] = {"kvtool": [], "transformers": []}
    for turn in range(rounds + 1):
        prompts = torch.randint(3, 49000, (batch_size, input_len), generator=torch.Generator().manual_seed(turn))
        for name in list(figures) if turn % 2 else reversed(figures):
            run = (
                run_kvtool(ours, prompts, output_len)
                if name == "kvtool"
                else run_transformers(peer, prompts, output_len)
            )
            if turn:  # the first turn warms both up
                figures[name].append(run)
    ttft, tpot = ({name: median(run[i] for run in runs) * 1e3 for name, runs in figures.items()} for i in (0, 1))
    return (
        f"| {input_len} | {batch_size} | {tpot['kvtool']:.1f} | {tpot['transformers']:.1f} "
        f"| {tpot['kvtool'] / tpot['transformers']:.2f}x | {ttft['kvtool']:.0f} | {ttft['transformers']:.0f} "
        f"| {ttft['kvtool'] / ttft['transformers']:.2f}x |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a safetensors folder (default: random weights)")
    parser.add_argument("--input-len", default="512", help="prompt tokens, a comma list")
    parser.add_argument("--batch-size", default="1,8", help="prompts at a time, a comma list")
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = arguments.weights or Path(temporary)
        if arguments.weights is None:
            smollm2_shaped().to(torch.bfloat16).save_pretrained(folder)
        print(
            f"torch {torch.__version__}, transformers {transformers.__version__}, {arguments.threads} threads, bf16\n"
        )
        print("| input | batch | TPOT ms kvtool | transformers | ratio | TTFT ms kvtool | transformers | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for input_len in map(int, arguments.input_len.split(",")):
            for batch_size in map(int, arguments.batch_size.split(",")):
                print(compare(folder, input_len, batch_size, arguments.output_len, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
