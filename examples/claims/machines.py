"""Claims about cards and what is kept on them, each against `kvtool size` and `kvtool gpus`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
from claim import RIGHT, WRONG, Claim, judge, kvtool, sizes, worst

from kvtool.catalog.gpus import Gpu
from kvtool.units import format_bytes

# An SM of A100 and H100 (NVIDIA's whitepapers): FP32 lanes and boost clock in GHz. A lane reads three operands a cycle.
LANES, CLOCK_GHZ = {"a100-sxm-80gb": 64, "h100": 128}, {"a100-sxm-80gb": 1.41, "h100": 1.98}
OPERAND_BYTES = 3 * 4
NIC_GBITS = {"a100-sxm-80gb": 200, "b200-sxm-180gb": 400}  # of a card in DGX A100 and DGX B200 (NVIDIA's data sheets)


def machine_claims() -> Iterator[Claim]:
    yield eighty_gb()
    yield register_speed()
    yield io_to_compute()
    yield latents()
    yield by_length()
    yield places()
    yield memory_saved()
    yield queries()


class _Cards(msgspec.Struct):
    gpus: list[Gpu]


def card(name: str) -> Gpu:
    return msgspec.json.decode(kvtool(f"kvtool gpus {name} --json"), type=_Cards).gpus[0]


def eighty_gb() -> Claim:
    command = "kvtool size llama-3.1-8b --context 8k --gpu h100"
    fit = sizes(command)[0].fit
    weights, pool = fit.weights_bytes or 0, fit.kv_pool_bytes or 0
    rest = (fit.activation_bytes or 0) + (fit.reserve_bytes or 0)
    kept = (fit.memory_bytes or 0) - (fit.usable_bytes or 0)
    return Claim(
        said="A card of 80 GB holds 16 GB of weights of an 8B model, 50 GB of cache and 14 GB of activations",
        found=f"{weights / 1e9:.1f} GB, {pool / 1e9:.1f} GB and {rest / 1e9:.1f} GB, and {kept / 1e9:.1f} GB left free",
        verdict=worst(judge("16 GB", weights), judge("50 GB", pool), judge("14 GB", rest)),
        why="Activations and the runtime take 2 GB; vLLM leaves 8 % free, and the cache has all that remains.",
        shown_by=(command,),
    )


def register_speed() -> Claim:
    cards = {name: card(name) for name in LANES}
    times = {
        name: OPERAND_BYTES
        * LANES[name]
        * (gpu.compute_units or 0)
        * CLOCK_GHZ[name]
        / (gpu.memory_bandwidth_gbps or 1)
        for name, gpu in cards.items()
    }
    ampere, hopper = times.values()
    return Claim(
        said="Registers are 100x faster than HBM",
        found=f"{ampere:.0f}x on an A100 and {hopper:.0f}x on an H100",
        verdict=worst(*(RIGHT if round(math.log10(each)) == 2 else WRONG for each in times.values())),
        why="Three operands of 4 B for each FP32 lane and cycle, over the card's bandwidth; to the power of ten.",
        shown_by=tuple(f"kvtool gpus {name} --json" for name in LANES),
    )


def io_to_compute() -> Claim:
    old, new = (card(name) for name in NIC_GBITS)
    before, after = NIC_GBITS.values()
    bf16, fp8, old_bf16 = (value or 0.0 for value in (new.bf16_tflops, new.fp8_tflops, old.bf16_tflops))
    fell = {name: before / after * tflops / old_bf16 for name, tflops in (("bf16", bf16), ("fp4", 2 * fp8))}
    return Claim(
        said="From Ampere to Blackwell I/O fell 14.4x against compute",
        found=f"{fell['fp4']:.1f}x with an A100's bf16 against a B200's fp4, {fell['bf16']:.1f}x with bf16 in both",
        verdict=RIGHT if f"{fell['fp4']:.1f}" == "14.4" else WRONG,
        why="NICs got 2x as fast (200 to 400 Gb/s a card), dense bf16 7.2x; fp4, twice as fast as fp8, is 4x more.",
        shown_by=tuple(f"kvtool gpus {name} --json" for name in NIC_GBITS),
    )


def latents() -> Claim:
    commands = (
        "kvtool size deepseek-v3 --kv-cache-dtype bf16",
        "kvtool size --layers 61 --heads 128 --head-dim 128 --kv-cache-dtype bf16",
    )
    mla, mha = (sizes(command)[0].kv.bytes_per_token for command in commands)
    return Claim(
        said="MLA keeps a fraction of what MHA of its shape would",
        found=f"DeepSeek-V3 {mla:,} B a token, 128 heads of 128 in 61 layers {mha:,} B: {mha / mla:.0f}x",
        verdict=RIGHT if 2 * mla <= mha else WRONG,
        why="512 + 64 elements a layer, in place of 2 x 128 x 128.",
        shown_by=commands,
    )


def by_length() -> Claim:
    command = "kvtool size llama-3.1-8b --context 100,100000"
    short, long = (row.kv.bytes_per_sequence for row in sizes(command))
    return Claim(
        said="A cache takes from 15 MB at 100 tokens to 15 GB at 100k",
        found=f"Llama-3.1-8B takes {short / 1e6:.1f} MB and {long / 1e9:.1f} GB",
        verdict=worst(judge("15 MB", short), judge("15 GB", long)),
        why=f"It grows evenly, as is said, by {short // 100:,} B a token; 150 kB are no model's of that size.",
        shown_by=(command,),
    )


def places() -> Claim:
    command = "kvtool size llama-3.1-8b --context 4k --gpu h100 --dram 256GiB --nvme 1TB --nvme-gbps 7"
    tiers = {tier.name: tier for tier in sizes(command)[0].tiers or []}
    tokens, dram_ms, disk_ms = tiers["hbm"].tokens or 0, tiers["dram"].reload_ms or 0.0, tiers["nvme"].reload_ms or 0.0
    said = tokens < 100_000, 1 <= dram_ms < 10, 10 <= disk_ms < 100
    return Claim(
        said="A GPU keeps below 100k tokens, DRAM is a few ms away and an SSD tens of ms",
        found=f"an H100 keeps {tokens:,} tokens of Llama-3.1-8B; 4,096 come back in {dram_ms:.1f} and {disk_ms:.0f} ms",
        verdict=RIGHT if all(said) else WRONG,
        why="The times are of that many tokens over PCIe 5 and a drive of 7 GB/s. What a GPU keeps hangs on the model: "
        "five times as much of this one.",
        shown_by=(command,),
    )


def memory_saved() -> Claim:
    commands = [
        "kvtool size llama-2-7b --context 4k",
        "kvtool size llama-2-7b --context 4k --kv-cache-dtype fp8,int4",
        "kvtool size --layers 32 --heads 32 --kv-heads 8 --head-dim 128 --context 4k",
    ]
    whole, short, shorter, grouped = (row.kv.bytes_per_sequence for command in commands for row in sizes(command))
    saved = ", ".join(
        f"{name} {1 - taken / whole:.0%}"
        for name, taken in (("fp8", short), ("int4", shorter), ("8 KV heads", grouped))
    )
    return Claim(
        said="A KV cache takes 50 to 80 % off memory",
        found=f"it takes {format_bytes(whole)} of Llama-2-7B at 4k tokens; off that take {saved}",
        verdict=WRONG,
        why="A cache is memory, spent to save time. Shorter formats and fewer heads take such a part off the cache.",
        shown_by=tuple(commands),
    )


def queries() -> Claim:
    command = "kvtool size llama-3.1-8b --context 4k"
    row = sizes(command)[0]
    more = 32 * 32 * 128 * 2
    return Claim(
        said="Q is not cached, since no later step reads it",
        found=f"a step reads the K and V of all 4,096 tokens, {row.kv.bytes_per_token:,} B each; Q would be {more:,} B "
        "more, of which a step reads its own token's alone",
        verdict=RIGHT if (row.decode.kv_read_bytes_per_step or 0) == 4096 * row.kv.bytes_per_token else WRONG,
        why="A step scores one new query against all keys: 32 layers x 32 heads x 128 x 2 B would lie there unread.",
        shown_by=(command,),
    )
