"""`--lengths`: a trace of requests, a list of lengths, or two figures that a lognormal is fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import msgspec

from kvtool.sizing.questions.lengths import Lengths
from kvtool.system.errors import KvtoolError
from kvtool.units import MAX_LENGTH_TOKENS, parse_length

FORMS = "write a file, MEAN,P95 as 4k,12k, or p50=2k,p95=16k"
QUANTILES = 4096  # points that stand for a fitted curve
P95_SIGMAS = NormalDist().inv_cdf(0.95)
MAX_P95_OVER_MEAN = math.exp(P95_SIGMAS**2 / 2)  # of any lognormal


class _Request(msgspec.Struct, frozen=True):
    """One line of a trace as Mooncake publishes them; other fields are not needed."""

    input_length: int
    output_length: int = 0


def parse_lengths(text: str) -> Lengths:
    """What `--lengths` says. Raises KvtoolError in one line for what is neither a file nor two figures."""
    path = Path(text)
    if "," not in text or path.is_file():
        return read_lengths(path)
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise KvtoolError(f"lengths {text!r} are not two figures: {FORMS}")
    names = [part.partition("=")[0].strip().lower() if "=" in part else None for part in parts]
    if names not in ([None, None], ["mean", "p95"], ["p50", "p95"]):
        raise KvtoolError(f"lengths {text!r} name other figures than mean or p50, then p95: {FORMS}")
    first, p95 = (parse_length(part.partition("=")[2] if "=" in part else part, "length") for part in parts)
    return lognormal(p95=p95, median=first) if names[0] == "p50" else lognormal(p95=p95, mean=first)


def lognormal(*, p95: int, mean: int | None = None, median: int | None = None) -> Lengths:
    """A lognormal of that 95th percentile and that mean or median, as equally likely lengths. Raises KvtoolError."""
    if median is not None:
        if p95 < median:
            raise KvtoolError(f"p95 {p95} is below the median {median}")
        location, sigma = math.log(median), math.log(p95 / median) / P95_SIGMAS
        known = f"median {median:,}"
    elif mean is not None:
        location, sigma = _from_mean(mean, p95)
        known = f"mean {mean:,}"
    else:
        raise ValueError("a lognormal needs a mean or a median")
    middle = (NormalDist().inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES))
    tokens = (min(MAX_LENGTH_TOKENS, max(1, round(math.exp(location + sigma * z)))) for z in middle)
    return Lengths(source=f"lognormal of {known} and p95 {p95:,} tokens", tokens=tuple(tokens), requests=None)


def _from_mean(mean: int, p95: int) -> tuple[float, float]:
    """ln p95 - ln mean = z sigma - sigma^2 / 2, of whose two answers the narrower curve is taken."""
    ratio = p95 / mean
    if not 1 <= ratio <= MAX_P95_OVER_MEAN:
        raise KvtoolError(
            f"no lognormal has mean {mean:,} and p95 {p95:,}: p95 / mean is {ratio:.2f} and must be from 1 to "
            f"{MAX_P95_OVER_MEAN:.2f}; give the median instead (p50=TOKENS,p95={p95}) or a trace"
        )
    sigma = P95_SIGMAS - math.sqrt(max(0.0, P95_SIGMAS**2 - 2 * math.log(ratio)))
    return math.log(mean) - sigma**2 / 2, sigma


def read_lengths(path: Path) -> Lengths:
    """Requests of a .jsonl trace (input_length, output_length a line), or whole numbers, one a line or as a JSON list.

    Raises KvtoolError naming the line that is neither.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise KvtoolError(f"lengths {str(path)[:80]!r}: {reason}; {FORMS}") from error
    tokens = sorted(_tokens(path, data))
    if not tokens:
        raise KvtoolError(f"{path} has no requests: {FORMS}")
    return Lengths(source=f"{len(tokens):,} requests of {path.name}", tokens=tuple(tokens), requests=len(tokens))


def _tokens(path: Path, data: bytes) -> Iterator[int]:
    decoder = msgspec.json.Decoder(int | _Request)
    lines = data.splitlines()
    if data.lstrip().startswith(b"["):
        lines = [bytes(item) for item in _items(path, data)]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise KvtoolError(f"{path}, request {number}: {error}; write input_length and output_length") from error
        parts = (request,) if isinstance(request, int) else (request.input_length, request.output_length)
        tokens = sum(parts)
        if min(parts) < 0:
            raise KvtoolError(f"{path}, request {number}: a length of {min(parts)} tokens is negative")
        if not 1 <= tokens <= MAX_LENGTH_TOKENS:
            raise KvtoolError(f"{path}, request {number}: {tokens} tokens must be from 1 to {MAX_LENGTH_TOKENS}")
        yield tokens


def _items(path: Path, data: bytes) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KvtoolError(f"{path} is not a JSON list of lengths: {error}") from error
