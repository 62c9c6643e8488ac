"""What the engine asks of the tiers below its block pool.

offload.prefetch(sequence)           it was queued: what lies on the disk is read ahead
offload.expect(sequence)             it waits in front: if it gave way, what went to the disk since is read ahead
offload.back(sequence, pages)        it is seated: what lies below is loaded for its pages
offload.begin()                      a step begins: what was loaded comes up, layer by layer, while it computes
offload.arrive()                     it is over: all of that is in the pool
offload.computed(work)               its whole pages may move down, by the write policy
offload.handing_out(pages)           they get a new owner: the last moment to move them down
offload.close()                      every write lands
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import takewhile

from kvtool.cache.manager import CacheManager, SequenceCache
from kvtool.cache.tiers.counters import TierCounters
from kvtool.cache.tiers.keys import extend_keys
from kvtool.cache.tiers.options import WritePolicy
from kvtool.cache.tiers.shelf import Key
from kvtool.engine.offload.break_even import BreakEven
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.stack import TierStack
from kvtool.engine.preemption import Swap
from kvtool.engine.scheduler import Work
from kvtool.engine.sequence import Sequence


class Offload(Swap):
    """The keys of cached pages, and the policy by which they move. `root` is the identity of the run."""

    def __init__(
        self,
        cache: CacheManager,
        stack: TierStack,
        policy: WritePolicy,
        *,
        root: bytes,
        break_even: BreakEven,
        notices: Notices,
    ) -> None:
        self.stack = stack
        self.notices = notices
        self._cache = cache
        self._policy = policy
        self._root = root
        self._break_even = break_even
        self._key_of: dict[int, Key] = {}  # of every whole page from when it is computed until it is handed out again
        self._hits: dict[int, int] = {}
        self._ahead: dict[int, list[Key]] = {}
        self._loading: list[Sequence] = []
        self._handed_out = 0  # pages so far
        self._looked: tuple[int, int] = (-1, 0)  # for whom, and after how many pages, what waits was looked for last

    def prefetch(self, sequence: Sequence) -> None:
        """Begin to read what of its prompt lies on the disk and not in the pool, unless computing it is faster."""
        compute_s = self._break_even.compute_s()
        if compute_s is not None and self._break_even.load_s("disk") > compute_s:
            return
        cached = self._cache.match(sequence.token_ids) // self._cache.block_size
        wanted = self._keys(sequence)[cached:]
        self.stack.read_ahead(wanted)
        self._ahead[sequence.id] = list(dict.fromkeys([*wanted, *self._ahead.get(sequence.id, ())]))

    def expect(self, sequence: Sequence) -> None:
        """It will be seated next. What others have not taken of its pages since it gave way is in the pool still."""
        looked = (sequence.id, self._handed_out)
        if sequence.num_preemptions and looked != self._looked:
            self._looked = looked
            self.prefetch(sequence)

    def out(self, sequence: Sequence) -> None:
        """Its whole pages stay in the pool until they are handed out, or are below already."""

    def back(self, sequence: Sequence, pages: SequenceCache) -> int:
        """Load what of the sequence lies below into `pages`, reserved for all of it. How many of its first tokens have
        K/V now; more may join once others are computed."""
        keys, start = self._keys(sequence), pages.num_cached_pages
        if pages.cached_tokens > start * self._cache.block_size:
            return pages.cached_tokens  # forked, or a part of a page is about to be copied: nothing is loaded over it
        self._note_hits(pages.table.pages[:start])
        below = list(takewhile(lambda key: self.stack.tier_of(key) is not None, keys[start:]))
        tiers = [self.stack.tier_of(key) for key in below]
        plan = self._break_even.plan([self.stack.cost_of(key) for key in below], room=self.stack.room_ahead)
        stop = start + self._load(sequence, pages, start, start + plan.load)
        first = stop + plan.compute
        last = first + plan.load_behind if stop == start + plan.load else first
        ahead = set(keys[first:last])
        self.stack.forget_ahead([key for key in self._ahead.pop(sequence.id, ()) if key not in ahead])
        if ahead:
            self.stack.read_ahead(keys[first:last])
            self._ahead[sequence.id] = keys[first:last]
            sequence.join_at = first * self._cache.block_size
        for tier in tiers[plan.load : len(tiers) - plan.load_behind]:
            self.stack.counts[tier or ""].recomputed_tokens += self._cache.block_size
        return stop * self._cache.block_size

    def _join(self, sequence: Sequence) -> None:
        """Its tokens up to where it joins are computed: load those behind, which were read meanwhile."""
        assert sequence.pages is not None
        ahead = self._ahead.pop(sequence.id)
        start = sequence.num_computed // self._cache.block_size
        loaded = self._load(sequence, sequence.pages, start, start + len(ahead), overlapped=True)
        self.stack.forget_ahead(ahead)
        sequence.join_at = None
        sequence.num_computed += loaded * self._cache.block_size
        if sequence.cached_tokens is not None and not sequence.num_preemptions:
            sequence.cached_tokens += loaded * self._cache.block_size

    def _load(
        self, sequence: Sequence, pages: SequenceCache, start: int, stop: int, *, overlapped: bool = False
    ) -> int:
        """Fill its pages from `start` to `stop`, as far as they can be had: how many."""
        block_size, keys = self._cache.block_size, sequence.page_keys
        tiers = [self.stack.tier_of(key) for key in keys[start:stop]]
        start_s = self.stack.clock()
        loaded = self.stack.load(keys[start:stop], pages.table.pages[start:stop], overlapped=overlapped)
        _waited(sequence, self.stack.clock() - start_s)
        if loaded:
            self._loading.append(sequence)
            self._cache.commit(pages, sequence.token_ids[: (start + loaded) * block_size])
            self._name(pages.table.pages[start : start + loaded], keys[start : start + loaded])
        for tier in tiers[:loaded]:
            self.stack.counts[tier or ""].hit_tokens += block_size
        return loaded

    def begin(self) -> Callable[[int], None] | None:
        """Let what was loaded come up. What waits for the pages of a layer, by its number; None where nothing comes."""
        arrival = self.stack.begin()
        return None if arrival is None else arrival.wait

    def arrive(self) -> float:
        """Have it all in the pool; how many seconds the step waited for it."""
        waited_s = self.stack.arrive()
        for sequence in self._loading:
            _waited(sequence, waited_s)
        self._loading.clear()
        return waited_s

    def _keys(self, sequence: Sequence) -> list[Key]:
        """Of the whole pages before its last token."""
        num_pages = (len(sequence.token_ids) - 1) // self._cache.block_size
        extend_keys(sequence.page_keys, sequence.token_ids, self._cache.block_size, num_pages, self._root)
        return sequence.page_keys[:num_pages]

    def computed(self, work: Work) -> None:
        """`work` is in the cache: the pages that it made whole get their names, and move down where the policy says."""
        sequence, block_size = work.sequence, self._cache.block_size
        start, stop = (sequence.num_computed - work.num_tokens) // block_size, sequence.num_computed // block_size
        if start == stop:
            return
        assert sequence.pages is not None
        extend_keys(sequence.page_keys, sequence.token_ids, block_size, stop, self._root)
        pages, keys = sequence.pages.table.pages[start:stop], sequence.page_keys[start:stop]
        self._name(pages, keys)
        self.stack.moved_up(keys)
        if self._policy.kind == "through":
            self._store(pages)
        if sequence.num_computed == sequence.join_at:
            self._join(sequence)

    def _name(self, pages: Seq[int], keys: Seq[Key]) -> None:
        self._key_of.update(zip(pages, keys, strict=True))
        self._hits.update(dict.fromkeys(pages, 0))

    def _note_hits(self, pages: Seq[int]) -> None:
        """A sequence found them in the pool. Those that it did often enough move down by the selective policy."""
        if self._policy.kind != "selective":
            return
        for page in pages:
            self._hits[page] = self._hits.get(page, 0) + 1
        self._store([page for page in pages if page in self._key_of and self._hits[page] == self._policy.hits])

    def _store(self, pages: Seq[int]) -> None:
        """Down with pages in the order of a prompt: the first is the most recently used, since the last go first."""
        through = self._policy.kind != "back"
        self.stack.store(pages[::-1], [self._key_of[page] for page in reversed(pages)], through=through)

    def handing_out(self, pages: list[int]) -> None:
        """The cache gives these pages to somebody else; those of a prefix that were evicted come the last one first."""
        if self.stack.comes_into(pages):
            self.arrive()
        if self._policy.kind == "back":
            self._store([page for page in reversed(pages) if page in self._key_of])
        self._handed_out += len(pages)
        for page in pages:
            self._key_of.pop(page, None)
            self._hits.pop(page, None)

    def observe(self, work: Seq[Work], seconds: float) -> None:
        """A step took so long: where all of it was prefill, that is what computing costs."""
        if not any(item.is_decode for item in work):
            self._break_even.computed(sum(item.num_tokens for item in work), seconds)

    def counters(self) -> list[TierCounters]:
        """Of host memory and the disk, where they are."""
        there = {"dram": self.stack.host.capacity > 0, "disk": self.stack.disk is not None}
        return [self.stack.counts[name].snapshot() for name, is_there in there.items() if is_there]

    def settle(self) -> None:
        """Wait until what moves has landed."""
        self.stack.settle()

    def reset(self) -> None:
        """Forget every page below, and count from 0; the speeds that were seen are remembered."""
        for table in (self._key_of, self._hits, self._ahead):
            table.clear()
        self._loading.clear()
        self.stack.reset()

    def close(self) -> None:
        """What was kept back goes to the disk, and every write lands. Nothing may be asked afterwards."""
        self.arrive()
        if self._policy.kind == "back" and self.stack.disk is not None:
            self._store(list(self._key_of))
            self.stack.write_all_down()
        self.stack.close()


def _waited(sequence: Sequence, seconds: float) -> None:
    """Of a request's time to its first token, what went by until pages had come from below."""
    if not sequence.token_times_s:
        sequence.load_s += seconds
