"""What a replay says beside its numbers: how they are defined, what was assumed, what is odd about the trace."""

from __future__ import annotations

import numpy as np

from kvtool.replay.accesses import Accesses
from kvtool.replay.capacity import BlockBytes
from kvtool.replay.policies import POLICIES
from kvtool.replay.saved import PrefillFloor
from kvtool.replay.tiers.options import TierOptions
from kvtool.replay.tiers.serving import MAX_SEQUENCES, MAX_STEP_TOKENS
from kvtool.units import format_bytes
from kvtool.workloads.traces.traces import FORMATS

DEFINITION = {
    "hit": "a block of the longest run from the head of a prompt that is in the cache when the request arrives, before "
    "its own blocks are stored",
    "block": "a block is its whole prefix: the same id behind other ids is another block",
    "insertion": "the blocks that hit are touched and the missing ones are stored head to tail; none of the request's "
    "own is evicted for another, and when nothing can go the rest of it is not stored; the plain policies store "
    "every block, and may evict the request's own",
    "block_hit_ratio": "blocks that hit / blocks of all requests that count",
    "token_hit_ratio": "tokens in blocks that hit / input tokens; the last block of a prompt has what is left of it",
    "mean_request_token_hit_ratio": "the mean over requests of each one's token hit ratio",
    "ceiling_content": "no limit of capacity",
    "ceiling_relaxed": "the best choice of blocks at this capacity with all requests known (Belady's MIN); where "
    "blocks differ in bytes, the lower of MIN with all blocks as small as the smallest, and of what fits of the "
    "bytes x requests that hits need",
    "ceiling_strict": "the best choice where a block counts only behind its whole prefix: for blocks of one size it is "
    "found exactly, and equals ceiling_relaxed, since no block is used before its prefix; else it is not computed",
    "limited_by": "none: all that was seen before hits. policy: the gap to ceiling_strict (or relaxed) is the larger; "
    "capacity: the gap from there to ceiling_content is",
    "ttft_saved_ms": "the mean over requests of a whole prefill's time less that behind its hit, at the card's figures",
}


def definition(policies: tuple[str, ...], last: float) -> dict[str, str]:
    """Every word of the document, the policies among them, and which requests count."""
    counted = "all requests" if last == 1 else f"the last {100 * last:g} % of the requests; those before fill the cache"
    return DEFINITION | {"requests_counted": counted} | {name: POLICIES[name] for name in policies}


def assumptions(
    accesses: Accesses, room: BlockBytes | None, floor: PrefillFloor | None, *, sorted_by_time: bool
) -> list[str]:
    """What the numbers rest on that the trace does not say."""
    order = "by their time of arrival" if sorted_by_time else "in the order of the file"
    lines = [
        f"requests are replayed {order}, one after the other: a request finds what those before it stored",
        "prompts alone are cached: the tokens that a request generates are not",
        f"blocks are of {accesses.block_size} tokens, as {accesses.format} traces are cut unless they say otherwise",
    ]
    if accesses.format == "kv-events":
        lines.append(
            "events tell what was stored: requests served whole from the cache are not in the trace, nor are other "
            "tiers and the groups of windows and states"
        )
    if FORMATS[accesses.format].own_clocks and not sorted_by_time:
        lines.append("sessions follow one another: --sort-by-time replays them as if all began at once")
    if room is not None:
        lines.append(_room_line(room))
    if floor is not None and not floor.measured:
        lines.append("milliseconds are at the card's dense bf16 rate and bandwidth, which no prefill quite reaches")
    return lines


CLUSTER_ASSUMPTIONS = (
    "storage keeps prompts and answers in whole blocks, of all sessions, and evicts nothing; it is as fast as its NICs",
    "a turn begins after the answer to the one before it, and the time between their arrivals in the trace",
    "a node's GPUs share a prefill or a decode step evenly, as its NICs share their bytes",
    "with pool= a request waits until a decode node's GPUs have room for its prompt and answer, else they always have",
    "a decode keeps the step time of the batch that it joins; collectives take alpha= (10 us, stated), and the time of "
    "their bytes over the links of a node's GPUs, at the card's figure; none where that is not known",
    "with local= a prefill node keeps the last prompt of each session that it computed, the longest unused going first",
    "a prefill node takes requests while it has less than 5 s of tokens, one with less than 3 s to read first",
)


def tier_assumptions(options: TierOptions) -> list[str]:
    """What a replay on a clock rests on."""
    served = [
        f"a step computes up to {MAX_STEP_TOKENS:,} tokens of prompts, and one of each request that decodes, of "
        f"{MAX_SEQUENCES} at most; {_memory(options.pool_tokens)}",
        "a request finds what those before it in the trace stored, as far as it is computed when its own step begins; "
        "what another request is loading it waits for, and it comes once for both",
    ]
    if not options.tiers:
        return served
    speeds = [
        f"{tier.name} {tier.read_gbps:g}/{tier.write_gbps or tier.read_gbps:g} GB/s ({tier.source})"
        for tier in options.tiers
    ]
    duplex = "in both directions together" if options.half_duplex else "in each direction"
    lines = [
        f"tiers read and write, {duplex}: {', '.join(speeds)}; latencies are assumed where speeds were not measured",
        "bytes of a tier pass through the links of those above it, shared max-min fair; writes wait for nothing",
        *served,
        "every tier evicts what was used least recently, tails before heads",
    ]
    depths = [f"{tier.name} {tier.queue_depth}" for tier in options.tiers if tier.queue_depth is not None]
    if depths:
        lines.append(f"a block is one request of a tier, of which so many are on their way: {', '.join(depths)}")
    if options.prefetch.kind != "wait":
        lines.append("what disk and remote have not sent in time is computed; host memory is waited for")
    if options.loading == "layerwise":
        lines.append("a layer is computed once its own part is loaded; all layers are alike")
    return lines


def _memory(pool_tokens: int | None) -> str:
    if pool_tokens is None:
        return "what runs has memory enough of its own (--pool-tokens)"
    return (
        f"what runs has memory for {pool_tokens:,} tokens, shared prefixes counted once: a request that has no room "
        "waits, and the one that decodes since the shortest time gives way and is computed again"
    )


def _room_line(room: BlockBytes) -> str:
    """What a block takes. A window's tokens are kept in every block, since a hit may end in any."""
    page = f"a block takes {format_bytes(room.page_bytes)} on all ranks together, windows kept in every block"
    if not room.state_bytes:
        return page
    every = "every block" if room.state_every == 1 else f"every {room.state_every} blocks, where alone a hit can end"
    return f"{page}, and {format_bytes(room.state_bytes)} of recurrent state with {every}"


def warnings(accesses: Accesses) -> list[str]:
    """What is odd about the trace: ids out of their chain, times that fall, block counts that lengths do not bear."""
    form, found = FORMATS[accesses.format], []
    if accesses.shared_ids and form.chained:
        found.append(f"{accesses.shared_ids:,} block ids stand behind different ids: each prefix is a block of its own")
    falls = int((np.diff(accesses.arrival_s) < 0).sum())
    if falls and not form.own_clocks:
        newest_first = 2 * falls > accesses.num_requests
        way = "most of the time, as in a log with the newest first" if newest_first else "in places"
        found.append(f"times fall {way} ({falls:,} times): --sort-by-time replays by time, not by line")
    rounded = 0 if form.whole_blocks else accesses.block_size - 1
    expected = (accesses.input_tokens + rounded) // accesses.block_size
    wrong = int(((expected != accesses.lengths) & (accesses.lengths > 0)).sum())
    if wrong:
        found.append(f"{wrong:,} requests have another number of blocks than their lengths say")
    return [f"{line}; kvtool trace check lists them" for line in found]
