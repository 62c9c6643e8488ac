"""What every word of a bench document means. Printed into each one."""

from __future__ import annotations

DEFINITIONS = {
    "ttft": "time to first token: first token out - request in, queueing included",
    "tpot": "time per output token: (e2e - ttft) / (n - 1) of a request with n output tokens; null when n = 1",
    "itl": "inter-token latency: every gap between two tokens of a request, pooled over requests",
    "e2e": "end to end: last token out - request in",
    "ntpot": "normalised time per output token: e2e / n (not shown; what some tools call TPOT)",
    "prefill_tokens_per_s": "prompt tokens of the batch / time until its last first token; null where requests queue",
    "decode_tokens_per_s": "tokens after the first of each request / time between the last first token and the end",
    "mbu": "model bandwidth utilisation: bytes a decode step must move / TPOT / read bandwidth measured in this run",
    "measured": "the best of several kernels; on a CPU measured again before and after every iteration, whose limit is "
    "the better of the two, so that MBU and MFU are medians over iterations; shown is the median limit",
    "mfu": "model FLOP/s utilisation of prefill: FLOPs of the prompts / time of prefill / FLOP/s measured in this run",
    "ideal_tpot_ms": "the longer of bytes / measured read bandwidth and FLOPs / measured FLOP/s of a decode step",
    "bytes": "mean over decode steps: weights read, KV read, KV written; other = embedding rows and logits",
    "kv_predicted_bytes": "pages that the sizing specs give for the case's requests at their longest",
    "kv_allocated_bytes": "pages that the allocator really held at its peak, times the bytes of the pool's tensors",
    "kv_waste_bytes": "allocated - bytes of the tokens that attention still needs",
    "hit_rate": "prompt tokens found in the cache / prompt tokens, micro-averaged, by the allocator's own counters",
    "ttft_saved_ms": "median over paired requests of uncached - cached TTFT; 95 % bootstrap interval over pairs",
    "percentiles": "linear interpolation; std with n - 1",
}
