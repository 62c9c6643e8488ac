"""What every word of a bench or kernels document means. Printed into each one."""

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
    "workload": "named traffic; hit_tokens are found when a request is first admitted, recomputed_tokens computed once "
    "more after it gave way; a run whose hits are not those that were generated fails, unless pages were evicted. A "
    "turn goes on from the answer that the model really gave; prompts of the warm-up and of every iteration are of "
    "different seeds, and the cache and its tiers are emptied between them",
    "tiers": "below the pool, of each arm its own; hit_tokens were loaded, recomputed_tokens were there but faster to "
    "compute; bytes moved into and out of the tier; stall_s = what steps waited for it; load_s of a sample = what its "
    "first token waited for pages from below. They come up layer by layer while the first layers compute",
    "ideal_ttft_ms": "of the average request with its hits, alone: the longer of (weights + K and V found) / measured "
    "read bandwidth and FLOPs of what is computed / measured FLOP/s; ttft_reason says what a TTFT more than 15 % above "
    "it goes to",
    "goodput_ratio": "requests within every limit of --goodput / all requests; null without limits",
    "repeat": "the cached arm run once more in the same turns: what two runs of the same thing differ by",
    "cold_start": "what no sample contains: seconds Triton compiled, seconds CUDA graphs of decode steps were captured",
    "accuracy": "a text in windows, every token given; KL of the format's next token from the reference's, in nats; "
    "perplexity = exp(mean surprise); standard errors over blocks of 64 tokens, of greedy text over prompts; errors by "
    "layer = |x - reference| / |reference| on the same queries, keys and values; the verdict is on the surprise that "
    "the format adds, by its 95 % interval: below 0.01 nats a token a loss that cannot be shown is taken for none",
    "fragmentation": "reserved = used + internal, when the most was used; external = free while the next request fits "
    "into it but into no hole; ratios of the pool, means over the steps while a request waited",
    "endpoint": "a server by its URL: times are the client's, from sending a request (or when it was due, where "
    "requests come at a rate alone) to events with tokens; tokens are those of the server's usage; hits those of its "
    "usage, else of its counters where they grew by our prompts alone; a request that fails is counted and part of no "
    "time",
    "percentiles": "linear interpolation; std with n - 1",
    "peers": "other engines on the same weights and prompts, greedy, in turns with ours, batch by batch, in rounds of "
    "their own; ttft = until every prompt has its first token, tpot = (until the last token - ttft) / later tokens, on "
    "the CPU; ratio = peer's median time / ours in the same rounds, above 1 where ours is faster, with the 95 % "
    "bootstrap interval over rounds; loading, compiling and warming up are not timed; peak memory is not told then",
}

KERNEL_DEFINITIONS = {
    "time_ms": "of one call: the mean over a pass of calls one after another, the gap between a kernel and the next "
    "included, as a step has them; percentiles are over passes. Where Triton runs, a CUDA graph of the pass is "
    "replayed, and submitting it is not in the time: of a short context this is the latency of the operation",
    "bytes": "what a call must move at least once: K and V of the tokens that its queries see, once; other = queries, "
    "outputs and block tables, or the rows to store",
    "working_set_bytes": "the cache that the calls of one pass go through, each on pages of its own in random order",
    "flushed": "before every pass something else was read, untimed, until nothing of ours was left in the "
    "last-level cache: so it is where a pass goes through less than twice that cache; a pass meets no page twice",
    "gbps": "bytes / median time",
    "tflops": "FLOPs of QK^T and PV, causal, a multiply-accumulate being two, and of making K and V of latents where "
    "that is done / median time",
    "mbu": "gbps / read bandwidth measured in this run; null for stores into so little that a cache may hold it",
    "mfu": "tflops / FLOP/s of a matrix product measured in this run",
    "ideal_ms": "the longer of bytes / measured read bandwidth and FLOPs / measured FLOP/s",
    "max_abs_diff": "of one call: largest difference from the reference kernels, which compute in fp32",
    "cold_start": "on the wall, in no other figure: the case's first call (compiling, where no case before did), and "
    "capturing a pass as a CUDA graph",
    "steady": "whether the last 4 warm-up passes varied by less than 5 % (standard deviation / mean)",
    "power": "of the card while the case and its peers were timed",
    "peers": "other libraries' kernels on the same pages and queries, checked against the same reference and timed in "
    "turns with ours, pass by pass; ratio = peer's median time / ours, above 1 where ours is faster, with the 95 % "
    "bootstrap interval over rounds; layouts, plans and compilation are not timed",
}
