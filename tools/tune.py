"""Time tiles of the attention kernels on this machine's GPU, and keep the fastest for the kernels to use on that card.

    python tools/tune.py --seconds 600          the shapes of the grid, the most important first

The file goes to kvtool/kernels/triton/tiles/cards/, where kernels look for it, and to --out. A shape that there was no
time for keeps what an earlier run found. Exit codes: 0 done, 2 wrong use, 3 no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec

from kvtool.bench.kernels.options import KernelsOptions
from kvtool.bench.kernels.work import KernelWork, plan
from kvtool.catalog.resolve import resolve_model
from kvtool.kernels.triton.tiles.tuned import CARDS, Card, TunedTile, file_name, minor, read_card
from kvtool.sizing.formats import parse_cache_format
from kvtool.system.errors import KvtoolError
from kvtool.system.files import write_atomic

K = 1024
# Model, part, context, batch, cache: what is served most comes first.
GRID = (
    ("llama-3.1-8b", "decode", 4 * K, 32, "bf16"),
    ("llama-3.1-8b", "prefill", 8 * K, 1, "bf16"),
    ("llama-3.1-8b", "decode", 4 * K, 32, "fp8"),
    ("deepseek-v3", "decode", 8 * K, 32, "bf16"),
    ("deepseek-v2-lite", "decode", 8 * K, 32, "bf16"),
    ("llama-3.2-1b", "decode", 4 * K, 32, "bf16"),
    ("qwen3-0.6b", "decode", 4 * K, 32, "bf16"),
    ("gemma-3-1b", "decode", 4 * K, 32, "bf16"),
)
PAGE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="another folder for the file")
    parser.add_argument("--seconds", type=float, default=600, help="no tile is tried after so many (default: 600)")
    options = parser.parse_args()
    if (lack := what_is_missing()) is not None:
        print(f"tune: {lack}", file=sys.stderr)
        sys.exit(3)
    deadline = time.monotonic() + options.seconds
    try:
        card = tuned(works(), go_on=lambda: time.monotonic() < deadline)
    except KvtoolError as error:
        print(f"tune: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    for folder in (CARDS, *([options.out] if options.out else [])):
        keep(card, folder)


def what_is_missing() -> str | None:
    """One line that says why nothing can be timed here, or None."""
    import torch

    return None if torch.cuda.is_available() else f"no CUDA device: torch {torch.__version__} sees none"


def works() -> list[KernelWork]:
    """The grid as calls of kernels."""
    return [_work(*entry) for entry in GRID]


def _work(name: str, part: str, context: int, batch_size: int, cache: str) -> KernelWork:
    model = resolve_model(name)
    options = KernelsOptions(
        contexts=(context,), batch_sizes=(batch_size,), chunk_len=context, num_iters=1, block_sizes=(PAGE,)
    )
    planned = plan(model, options, [parse_cache_format(cache, "bf16")], "bf16")
    return next(work for work in planned if work.part == part)


def tuned(todo: Iterable[KernelWork], go_on: Callable[[], bool]) -> Card:
    """Every shape that there is time for."""
    import torch
    import triton

    from kvtool.machine.roofline import last_level_cache_bytes, stream_buffer_bytes
    from kvtool.machine.timers import call_timer
    from tools.tuning import tune

    device = torch.device("cuda", torch.cuda.current_device())
    stream_bytes = stream_buffer_bytes(str(device), last_level_cache_bytes(str(device)))
    tiles = []
    for work in todo:
        if not go_on():
            print(f"no time left for {work.name}", flush=True)
            continue
        with torch.inference_mode():
            timer = call_timer(str(device))
            found = tune(work, device, stream_bytes=stream_bytes, timer=timer, capture=True, go_on=go_on)
        print(told(work, found), flush=True)
        tiles += [found] if found else []
        torch.cuda.empty_cache()  # the pool of the next shape may be as large as this one's
    return Card(
        card=torch.cuda.get_device_name(device),
        triton=minor(triton.__version__),
        torch=torch.__version__,
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        tiles=tiles,
    )


def told(work: KernelWork, found: TunedTile | None) -> str:
    """One line a shape."""
    if found is None:
        return f"{work.name}: the rules' tile stays"
    return f"{work.name}: {found.tile} takes {found.ms * 1e3:.1f} us, the rules' tile {found.rule_ms * 1e3:.1f} us"


def keep(card: Card, folder: Path) -> None:
    """Write the file of the card, with what it held of other shapes for the same Triton."""
    path = folder / file_name(card.card)
    card = msgspec.structs.replace(card, tiles=joined(_earlier(path, card), card.tiles))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n")
    print(f"written: {path}", flush=True)


def _earlier(path: Path, card: Card) -> Sequence[TunedTile]:
    if not path.exists():
        return ()
    before = read_card(path)
    return before.tiles if before.triton == card.triton else ()


def joined(before: Sequence[TunedTile], now: Sequence[TunedTile]) -> list[TunedTile]:
    """Of a shape that both have, the new one."""
    return list({each.shape: each for each in (*before, *now)}.values())


if __name__ == "__main__":
    main()
