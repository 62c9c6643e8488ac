"""Harms runs that keep prefixes on a disk, and says what it cost them: time, never a token.

python tools/faults.py          200 faults, each at a random moment or place
python tools/faults.py 1000 7   as many as you like, and the seed

A fault kills a run (-9) in the middle of its writes, cuts files off, flips a bit of each, removes some, fills the disk,
or refuses host memory. The next run, over what that left, must give the tokens of one without tiers, crash never, and
warn of each kind of harm at most once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch

from kvtool.cache.tiers.options import TierOptions
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.offload import host
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.page_file import HEADER_BYTES
from kvtool.engine.sequence import SamplingParams
from kvtool.units import MIB

sys.path.append(".")
from tests.bench.tiny_model import TINY

BLOCK_SIZE, POOL_PAGES, OUTPUT_TOKENS = 4, 24, 3
PROMPTS, STEM_TOKENS, OWN_TOKENS = 4, 48, 9


def cut_off(path: Path, checked_bytes: int, random: Random) -> None:
    os.truncate(path, random.randrange(checked_bytes))


def flip_a_bit(path: Path, checked_bytes: int, random: Random) -> None:
    data, place = bytearray(path.read_bytes()), random.randrange(checked_bytes)
    data[place] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def remove(path: Path, checked_bytes: int, random: Random) -> None:
    path.unlink()


@contextmanager
def full_disk(random: Random) -> Iterator[None]:
    """So many writes have room."""
    written, room, pwritev = count(), random.randrange(20), os.pwritev

    def fills_up(fd: int, views: list[memoryview], offset: int) -> int:
        if next(written) >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwritev(fd, views, offset)

    with patch.object(os, "pwritev", fills_up):
        yield


@contextmanager
def memory_refused(random: Random) -> Iterator[None]:
    with patch.object(host, "available_bytes", lambda device: 0):
        yield


HARMS = {"truncated": cut_off, "bit flipped": flip_a_bit, "missing": remove}
STATES = {"full disk": full_disk, "memory refused": memory_refused}
KINDS = ("killed", *HARMS, *STATES)


def loaded_model() -> LoadedModel:
    config = EngineConfig(device="cpu", dtype="fp32", block_size=BLOCK_SIZE, threads=1)
    return LoadedModel(TINY, config, max_positions=256)


def prompts(random: Random) -> list[list[int]]:
    """Some begin alike, and each comes twice, the second time when others have taken its pages."""
    stems = [random.choices(range(512), k=STEM_TOKENS) for _ in range(2)]
    first = [
        stems[i % 2][: random.randint(1, STEM_TOKENS)] + random.choices(range(512), k=OWN_TOKENS)
        for i in range(PROMPTS)
    ]
    return first + first


def run(
    loaded: LoadedModel, asked: list[list[int]], tiers: TierOptions | None, opened: Callable[[], object] = lambda: None
) -> tuple[list[list[int]], int]:
    """The tokens of each prompt, one after the other, and how many prompt tokens came from the disk. `opened` is called
    once the run knows what lies there."""
    loaded.notices = Notices()
    engine = Engine(loaded, num_pages=POOL_PAGES, config=replace(loaded.config, tiers=tiers))
    opened()
    outputs = []
    for prompt in asked:
        sequence = engine.add(prompt, SamplingParams(max_tokens=OUTPUT_TOKENS))
        for _ in engine.run_until_idle():
            engine.cache.check()
        outputs.append(sequence.output_ids)
    if engine.offload is not None:
        engine.offload.stack.check()
    found = sum(tier.hit_tokens for tier in engine.tiers() if tier.tier == "disk")
    engine.close()
    return outputs, found


def killed(work: Callable[[], object], folder: Path, pages: int) -> None:
    """`work` in a process of its own, which is killed once so many files have been written."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            work()
        os._exit(0)
    while len(files_of(folder)) < pages and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(child, 0)


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "kvtool-cache").glob("*.page"))


def fault(loaded: LoadedModel, kind: str, seed: int) -> tuple[int, list[str]]:
    """How many prompt tokens the harmed run found on the disk, and what it warned of. Raises AssertionError for a wrong
    token, a second warning of the same, and a whole page that is not found again."""
    random = Random(f"{kind} {seed}")
    asked = prompts(random)
    expected, _ = run(loaded, asked, None)
    with TemporaryDirectory(prefix="kvtool-faults-") as name:
        folder = Path(name)
        disk = TierOptions(disk_folder=folder, disk_bytes=64 * MIB, always_load=True)
        if kind in STATES:
            with STATES[kind](random):
                outputs, found = run(loaded, asked, disk)
        elif kind == "killed":
            killed(partial(run, loaded, asked, disk), folder, random.randint(1, 40))
            outputs, found = run(loaded, asked, disk)
            assert not loaded.notices.lines, loaded.notices.lines
        else:
            run(loaded, asked, disk)
            files = files_of(folder)
            harmed, checked_bytes = (
                random.sample(files, random.randint(1, len(files))),
                HEADER_BYTES + loaded.page_bytes,
            )

            def harm() -> None:
                for path in harmed:
                    HARMS[kind](path, checked_bytes, random)

            outputs, found = run(loaded, asked, disk, opened=harm)
    told = loaded.notices.lines
    assert outputs == expected, f"{kind}, seed {seed}: wrong tokens"
    assert len({line.partition(": ")[2] for line in told}) == len(told), f"{kind}, seed {seed}: {told}"
    return found, told


def main() -> None:
    faults, seed = (
        (int(text) for text in (*sys.argv[1:], "200", "0")[:2]) if len(sys.argv) != 2 else (int(sys.argv[1]), 0)
    )
    torch.set_num_threads(1)  # a process that is forked off has no other threads than this one
    loaded = loaded_model()
    tally: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for number in range(faults):
        kind = KINDS[number % len(KINDS)]
        found, told = fault(loaded, kind, seed * faults + number)
        tally[kind].update(faults=1, found=found, warned=bool(told))
    print(f"{'fault':16}{'runs':>6}{'warned':>8}{'tokens found again':>20}")
    for kind, counted in tally.items():
        print(f"{kind:16}{counted['faults']:6}{counted['warned']:8}{counted['found']:20,}")
    print(f"{faults} faults: no wrong token, no crash, no warning twice")


if __name__ == "__main__":
    main()
