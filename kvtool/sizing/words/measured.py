"""What a bench document measured of the cache formats that are sized, said beside what they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

from kvtool.results import AccuracyCase, BenchDocument, CacheSpeed
from kvtool.units import format_length


def measured_notes(document: BenchDocument, dtypes: Iterable[str]) -> list[str]:
    """A line for each of these cache formats that the document compares with another, or one that says it has none."""
    wanted = list(dict.fromkeys(dtypes))
    cases = [case for case in document.cases if isinstance(case, AccuracyCase)]
    found = [_note(case) for case in cases if case.inputs.get("kv_cache_dtype") in wanted]
    if found:
        return found
    known = ", ".join(dict.fromkeys(str(case.inputs.get("kv_cache_dtype")) for case in cases))
    return [f"--profile: nothing measured of {', '.join(wanted)}{f', only of {known}' if known else ''}"]


def _note(case: AccuracyCase) -> str:
    found = case.accuracy
    whole = "" if case.inputs.get("skip_layers") is None else f", layers {case.inputs['skip_layers']} whole"
    error = "" if found.kl_mean_se is None else f" +- {found.kl_mean_se:.0e}"
    parts = [f"KL {found.kl_mean:.1e}{error}", found.verdict, *(_in_time(found.speed) if found.speed else ())]
    return (
        f"{case.inputs.get('kv_cache_dtype')}{whole}: {'; '.join(parts)} (measured on {case.inputs.get('model')}, "
        f"{found.tokens:,} tokens of text {found.text_sha256[:8]}, beside {found.reference})"
    )


def _in_time(speed: CacheSpeed) -> Iterator[str]:
    fits = speed.reference_held_bytes[-1] / speed.held_bytes[-1]
    yield f"{fits:.2f}x the tokens at {format_length(speed.contexts[-1])}"
    slower = median(speed.itl_ms[0]) / median(speed.reference_itl_ms[0]) - 1
    word = "slower" if slower > 0 else "faster"
    yield f"a step {abs(100 * slower):.0f} % {word} at {format_length(speed.contexts[0])}; {speed.pays}"
