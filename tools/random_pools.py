"""Random models and starts through SGLang's own configurators and through kvtool's: every difference.

    python tools/random_pools.py SGLANG 1000 [SEED] | gzip -9n > tests/data/sglang_random.jsonl.gz

A model is a real config with other layers, heads and widths; what SGLang decides is loaded as in sglang_pools.py. Every
line: what is changed of which config, the start, what SGLang made of it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.append(".")
from kvtool.system.errors import KvtoolError
from tests.sizing.engines.sglang.pools import changed_model, differences, read_changed
from tools.sglang_pools import CONFIGS, DEFAULT, GIB, Sglang

RECORDED_EVERY = 5
SPARSE = ("deepseek_v32", "glm_moe_dsa")


def changes(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Fields of the text config with other values."""
    count, pick = rng.randint(8, 90), rng.choice
    if "mlp_layer_types" in config:
        count = config["num_hidden_layers"]
    found: dict[str, Any] = {"num_hidden_layers": count}
    for name, value in config.items():  # what is told of every layer
        if isinstance(value, list) and len(value) == config["num_hidden_layers"]:
            found[name] = (value + value[-1:] * count)[:count]
    if config.get("num_kv_shared_layers"):
        found["num_kv_shared_layers"] = count // 3
    if "layer_types" in config:
        kinds = sorted(set(config["layer_types"]), key=config["layer_types"].index)
        every = rng.randint(2, 7)
        found["layer_types"] = [kinds[-(i % every == every - 1 or i == count - 1)] for i in range(count)]
        if len(kinds) == 1:
            found["layer_types"] = kinds * count
    if "hybrid_override_pattern" in config:
        found["hybrid_override_pattern"] = "".join(pick("MM-*") for _ in range(count - 2)) + "M*"
        found |= {"mamba_num_heads": pick([64, 128]), "ssm_state_size": pick([64, 128]), "n_groups": pick([1, 8])}
    if "linear_attn_config" in config:
        full = sorted({*rng.sample(range(1, count + 1), rng.randint(1, count // 3)), count})
        found["linear_attn_config"] = config["linear_attn_config"] | {
            "full_attn_layers": full, "kda_layers": [i for i in range(1, count + 1) if i not in full],
            "num_heads": pick([16, 32]),
        }  # fmt: skip
    if "linear_num_value_heads" in config:
        found |= {"linear_num_value_heads": pick([16, 32, 64]), "linear_num_key_heads": pick([8, 16])}
    if "kv_lora_rank" in config:
        if config["model_type"] not in SPARSE:
            found |= {"kv_lora_rank": pick([256, 512]), "qk_rope_head_dim": pick([32, 64])}
        return found
    heads = config["num_attention_heads"]
    found["num_key_value_heads"] = pick([n for n in (1, 2, 4, 8, 16) if heads % n == 0])
    if "head_dim" in config and not {"global_head_dim", "attention_head_dim"} & config.keys():
        found["head_dim"] = pick([64, 96, 128, 256])
    if config.get("sliding_window"):
        found["sliding_window"] = pick([128, 512, 1024, 4096])
    return found


def start(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The flags of one start."""
    pick, kind = rng.choice, config["model_type"]
    sparse = kind in SPARSE
    backend = pick(["flashmla_kv", "trtllm"]) if sparse else ""
    return DEFAULT | {
        "pool_bytes": int(GIB * 2 ** rng.uniform(-4, 7)), "tp": pick([1, 1, 2, 4, 8]), "pp": pick([1, 1, 1, 2, 3]),
        "attention_dp": pick([1, 1, 1, 2, 4]), "page_size": 64 if sparse else pick([1, 1, 16, 64, 128]),
        "element_bytes": pick([1, 2]), "dsa_backend": backend, "context": pick([2048, 32768, 131072]),
        "swa_ratio": pick([0.8, 0.1, 0.5, 1.0]), "mamba_ratio": pick([0.9, 0.2, 0.5]),
        "max_running_requests": pick([None, None, 16, 100, 1000]), "max_total_tokens": pick([None, None, None, 50_001]),
        "max_mamba_cache_size": pick([None, None, None, 40, 200]), "radix_cache": rng.random() < 0.7,
    }  # fmt: skip


def main(root: str, count: int, seed: int) -> None:
    sglang = Sglang(Path(root))
    wrong = refused = 0
    for number in range(seed, seed + count):
        rng = random.Random(number)
        name = rng.choice(CONFIGS)
        config = read_changed(name, {})
        text = config.get("text_config", config)
        case = start(text, rng) | {"config": name, "changes": changes(text, rng)}
        if text["num_attention_heads"] % case["tp"]:
            case["tp"] = 1
        case["expected"] = sglang.solve(read_changed(name, case["changes"]), case)
        refused += "refusal" in case["expected"]
        try:
            found = differences(changed_model(case), case)
        except KvtoolError as error:
            found = [f"unread: {error}"]
        wrong += bool(found)
        if found:
            print(number, found, json.dumps(case), file=sys.stderr)
        elif number % RECORDED_EVERY == 0:
            print(json.dumps(case, separators=(",", ":")))
    print(f"{count} starts, {refused} that SGLang refuses: {wrong} differ", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
