"""vLLM's offline engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from kvtool.bench.engines.checkpoint import Checkpoint
from kvtool.bench.engines.engine import Answers
from kvtool.bench.peers import distribution_version, imported

NOTE = "its engine runs in a process of its own; first tokens are timed where the caller gets them"
FREE_SHARE = 0.9  # of the memory that is free: it must fit beside ours


def version() -> str | None:
    return distribution_version("vllm")


def start(checkpoint: Checkpoint) -> Vllm:
    checkpoint.require_first_gpu("vLLM")
    vllm = imported("vllm")
    free, total = torch.cuda.mem_get_info(checkpoint.device)
    engine = vllm.LLM(
        model=str(checkpoint.folder),
        skip_tokenizer_init=True,
        dtype=checkpoint.torch_dtype,
        max_model_len=checkpoint.max_tokens,
        kv_cache_memory_bytes=checkpoint.roomy_kv_bytes,
        gpu_memory_utilization=FREE_SHARE * free / total,
        enable_prefix_caching=False,
        disable_log_stats=False,  # the times of requests are among them
        seed=0,
    )
    return Vllm(vllm, engine)


class Vllm:
    note = NOTE

    def __init__(self, vllm: Any, engine: Any) -> None:
        self.vllm, self.engine = vllm, engine

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Answers:
        greedy = self.vllm.SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        start_s = time.time()
        outputs = self.engine.generate(inputs, greedy, use_tqdm=False)
        told = [output.metrics for output in outputs]
        # Arrivals are on the wall clock, the engine's own stamps on another: only differences of one clock are taken.
        first_s = max(times.arrival_time + times.first_token_latency for times in told) - start_s
        decode_s = max(times.last_token_ts for times in told) - max(times.first_token_ts for times in told)
        ids = [list(output.outputs[0].token_ids) for output in outputs]
        return Answers(first_s=first_s, last_s=first_s + decode_s, output_ids=ids)

    def close(self) -> None:
        self.engine.llm_engine.engine_core.shutdown()
