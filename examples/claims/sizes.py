"""Claims about bytes, each against a run of `kvtool size` or `kvtool gpus`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from claim import RIGHT, WRONG, Claim, judge, kvtool, sizes, worst

from kvtool.catalog.gpus import Gpu
from kvtool.results import SizeRow
from kvtool.units import format_bytes


def size_claims() -> Iterator[Claim]:
    yield llama_2_7b()
    yield llama_2_70b()
    yield ninety_six_layers()
    yield llama_3_8b()
    yield llama_2_7b_batch()
    yield shared_user_cache()
    yield heads()
    yield registers()
    yield sequence_parallel()


def llama_2_7b() -> Claim:
    command = "kvtool size llama-2-7b --context 2048 --kv-cache-dtype fp16"
    kv = sizes(command)[0].kv
    return Claim(
        said="Llama-2-7B in fp16 takes 0.5 MB a token, and 1 GB at 2048 tokens",
        found=f"{kv.bytes_per_token:,} B a token, {format_bytes(kv.bytes_per_sequence)}",
        verdict=worst(judge("0.5 MB", kv.bytes_per_token), judge("1 GB", kv.bytes_per_sequence)),
        why="2 x 32 layers x 32 heads x 128 x 2 B; exact where MB and GB are MiB and GiB.",
        shown_by=(command,),
    )


def llama_2_70b() -> Claim:
    command = "kvtool size llama-2-70b --context 10000,100000 --kv-cache-dtype bf16"
    short, long = (row.kv for row in sizes(command))
    return Claim(
        said="Llama-2-70B in bf16 takes 320 KB a token, 3.2 GB at 10k tokens and 32 GB at 100k",
        found=f"{short.bytes_per_token:,} B a token, {short.bytes_per_sequence / 1e9:.2f} GB and "
        f"{long.bytes_per_sequence / 1e9:.1f} GB",
        verdict=worst(
            judge("320 KB", short.bytes_per_token),
            judge("3.2 GB", short.bytes_per_sequence),
            judge("32 GB", long.bytes_per_sequence),
        ),
        why="The 320 are KiB, multiplied as if they were KB: 2.4 % too low.",
        shown_by=(command,),
    )


def ninety_six_layers() -> Claim:
    command = "kvtool size --layers 96 --heads 96 --kv-heads 8 --head-dim 128 --context 10000 --kv-cache-dtype fp16"
    kv = sizes(command)[0].kv
    return Claim(
        said="96 layers x 8 KV heads x 128 in fp16 take 3.93 GB at 10k tokens",
        found=f"{kv.bytes_per_sequence / 1e9:.3f} GB",
        verdict=judge("3.93 GB", kv.bytes_per_sequence),
        why="2 x 96 x 8 x 128 x 2 B x 10,000, in GB of 1000.",
        shown_by=(command,),
    )


def llama_3_8b() -> Claim:
    command = "kvtool size llama-3-8b --context 4096 --batch-size 1,100 --kv-cache-dtype fp16"
    one, hundred = sizes(command)
    row = one.layers[0]
    return Claim(
        said="Llama-3-8B at 4096 tokens in fp16 takes 2 GB, and 100 requests 200 GB",
        found=f"{format_bytes(one.kv.bytes_per_sequence)} and {format_bytes(hundred.kv.bytes_total)}",
        verdict=worst(judge("2 GB", one.kv.bytes_per_sequence), judge("200 GB", hundred.kv.bytes_total)),
        why=f"They multiply by the 32 query heads; {row.kv_heads} KV heads are what is kept: 4x less.",
        shown_by=(command,),
    )


def llama_2_7b_batch() -> Claim:
    command = "kvtool size llama-2-7b --context 2048,32k --batch-size 32 --kv-cache-dtype fp16"
    short, long = sizes(command)
    weights = short.weights.bytes or 0
    return Claim(
        said="Llama-2-7B, 2048 tokens, batch 32, fp16 takes about 8 GB, more than the 14 GB of weights, and 128 GB "
        "at 32k",
        found=f"{format_bytes(short.kv.bytes_total)} beside {format_bytes(weights)} of weights, and "
        f"{format_bytes(long.kv.bytes_total)}",
        verdict=worst(judge("8 GB", short.kv.bytes_total), judge("128 GB", long.kv.bytes_total)),
        why="4x too low, as if it had 8 KV heads; it has 32. Only the conclusion holds: "
        f"the cache is {short.kv.bytes_total / weights:.1f}x the weights.",
        shown_by=(command,),
    )


def shared_user_cache() -> Claim:
    prefix = 768  # tokens: 100.7 MB of Llama-3.1-8B
    alone = "kvtool size llama-3.1-8b --context 832 --batch-size 50"
    shared = f"{alone} --shared-prefix {prefix}"
    saved = sizes(alone)[0].kv.bytes_total - sizes(shared)[0].kv.bytes_total
    user = sizes(f"kvtool size llama-3.1-8b --context {prefix}")[0].kv.bytes_total
    return Claim(
        said="Sharing a 100 MB user cache over 50 items saves 4.9 GB",
        found=f"{prefix} tokens of Llama-3.1-8B are {user / 1e6:.1f} MB; sharing them saves {saved / 1e9:.2f} GB",
        verdict=judge("4.9 GB", saved),
        why="One copy stays, 49 go.",
        shown_by=(alone, shared),
    )


def heads() -> Claim:
    commands = [f"kvtool size --layers 32 --heads 32 --kv-heads {kv_heads} --head-dim 128" for kv_heads in (32, 8, 1)]
    mha, gqa, mqa = (sizes(command)[0].kv.bytes_per_token for command in commands)
    return Claim(
        said="With 32 query heads, GQA with 8 KV heads is 4x smaller than MHA with 32, and MQA with 1 is 32x smaller",
        found=f"{mha:,} B, {gqa:,} B ({mha / gqa:g}x) and {mqa:,} B a token ({mha / mqa:g}x)",
        verdict=RIGHT if (mha / gqa, mha / mqa) == (4, 32) else WRONG,
        why="Bytes go with the KV heads.",
        shown_by=tuple(commands),
    )


def registers() -> Claim:
    card_command, size_command = (
        "kvtool gpus a100-sxm-80gb --json",
        "kvtool size llama-2-7b --context 2048 --kv-cache-dtype fp16",
    )
    card = msgspec.json.decode(kvtool(card_command), type=_Cards).gpus[0]
    units, file_bytes = card.compute_units or 0, card.register_file_bytes or 0
    cache = sizes(size_command)[0].kv.bytes_per_sequence
    return Claim(
        said="An A100's registers hold 108 x 256 KB = 27 MB, against 1 GB of cache",
        found=f"{units} x {format_bytes(file_bytes)} = {format_bytes(units * file_bytes)}, against "
        f"{format_bytes(cache)}: {cache / (units * file_bytes):.0f}x",
        verdict=worst(
            RIGHT if units == 108 else WRONG,
            judge("256 KB", file_bytes),
            judge("27 MB", units * file_bytes),
            judge("1 GB", cache),
        ),
        why="MiB and GiB; the cache is Llama-2-7B's at 2048 tokens.",
        shown_by=(card_command, size_command),
    )


def sequence_parallel() -> Claim:
    whole, split = (f"kvtool size deepseek-v3 --tp 8 --dcp {dcp} --context 32k,64k" for dcp in (1, 8))
    (short, long), (short_split, long_split) = (
        [row.kv.bytes_per_gpu for row in sizes(command)] for command in (whole, split)
    )
    quadratic = long == 4 * short and long_split == 4 * short_split
    return Claim(
        said="Sequence parallelism takes KV memory from O(n^2) to O(n^2 / p)",
        found=f"DeepSeek-V3 at 32k and 64k tokens: {format_bytes(short)} and {format_bytes(long)} a GPU "
        f"({long / short:g}x); with dcp 8 {format_bytes(short_split)} and {format_bytes(long_split)} "
        f"(1/{short / short_split:g})",
        verdict=RIGHT if quadratic else WRONG,
        why="It goes from O(n) to O(n / p): twice the tokens are twice the bytes, on one GPU and on eight.",
        shown_by=(whole, split),
    )


class _Cards(msgspec.Struct):
    gpus: list[Gpu]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Tokens that fit a memory, in whole pages, by model; None where the weights alone do not fit the card."""

    memory: str
    shown_by: str
    tokens: dict[str, int | None]


MODELS = ("llama-3.1-8b", "llama-3.1-70b")
CARDS = {"40 GB card": "a100-40gb", "80 GB card": "a100-80gb"}
STORES = {"256 GB of DRAM": 256 * 10**9, "1 TB of SSD": 10**12}


def capacities() -> Iterator[Capacity]:
    """What is left of a card beside weights, activations and runtime; DRAM and SSD hold nothing but cache."""
    for memory, gpu in CARDS.items():
        rows = {model: sizes(f"kvtool size {model} --context 8k --gpu {gpu}")[0] for model in MODELS}
        tokens = {model: _tokens(row, row.fit.kv_pool_bytes or 0) or None for model, row in rows.items()}
        yield Capacity(memory=memory, shown_by=f"kvtool size MODEL --context 8k --gpu {gpu}", tokens=tokens)
    for memory, capacity in STORES.items():
        rows = {model: sizes(f"kvtool size {model} --context 8k")[0] for model in MODELS}
        tokens = {model: _tokens(row, capacity) for model, row in rows.items()}
        yield Capacity(memory=memory, shown_by="kvtool size MODEL --context 8k", tokens=tokens)


def _tokens(row: SizeRow, capacity_bytes: int) -> int:
    page = row.inputs.block_size * row.kv.slope_bytes_per_token
    return capacity_bytes // page * row.inputs.block_size
