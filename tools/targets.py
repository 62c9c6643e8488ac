"""What kvtool aims at on a GPU, beside what the documents of a folder say: `python -m tools.targets gpu-report`.

A figure must reach the first number, and better the second. Shares of what the card was measured to do hold on any
card; times and TFLOP/s only on those that they were set for, and no row of theirs is shown on another. A figure that no
document holds is said to be unmeasured; a point at which another library was faster is named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvtool.kernels.triton.tiles.tuned import CARDS, file_name
from kvtool.system.files import write_atomic

Document = dict[str, Any]
Case = dict[str, Any]
RATIOS = {"ratio": "time", "ttft_ratio": "TTFT", "tpot_ratio": "TPOT"}  # of a peer
SCHEMAS = ("kvtool.kernels/1", "kvtool.bench/1")
H200 = ("H200",)
HOPPER = ("H100", "H200", "H800")  # of equal FLOP/s


@dataclass(frozen=True, slots=True)
class Target:
    """`measure` takes the cases of all documents; None where none of them has the figure. `cards`: parts of the names
    of those that it was set for; none of them for a share, which holds on all."""

    name: str
    unit: str
    must: float
    ambitious: float
    measure: Callable[[list[Case]], float | None]
    cards: tuple[str, ...] = ()

    def is_for(self, card: str) -> bool:
        """Whether a figure of this card is held to it."""
        return not self.cards or any(name in card for name in self.cards)

    @property
    def lower_is_better(self) -> bool:
        return self.ambitious < self.must

    def verdict(self, measured: float) -> str:
        """ambitious, met or missed."""
        sign = -1 if self.lower_is_better else 1
        if sign * measured >= sign * self.ambitious:
            return "ambitious"
        return "met" if sign * measured >= sign * self.must else "missed"


def kernel(cases: Iterable[Case], name: str, **inputs: object) -> Case | None:
    """The case of this kernel whose inputs are these."""
    return next((case for case in cases if case.get("kernel") == name and _has(case, inputs)), None)


def latency(cases: Iterable[Case], **inputs: object) -> Case | None:
    """The latency case whose inputs are these."""
    return next((case for case in cases if case.get("part") == "latency" and _has(case, inputs)), None)


def _has(case: Case, inputs: dict[str, object]) -> bool:
    given = case["inputs"] | {"model": str(case["inputs"].get("model")).rpartition("/")[2].lower()}
    return all(given.get(name) == value for name, value in inputs.items())


def _share(name: str, **inputs: object) -> Callable[[list[Case]], float | None]:
    def measure(cases: list[Case]) -> float | None:
        found = kernel(cases, name, **inputs)
        mbu = found["roofline"]["mbu"] if found else None
        return None if mbu is None else 100 * mbu

    return measure


def _microseconds(name: str, **inputs: object) -> Callable[[list[Case]], float | None]:
    def measure(cases: list[Case]) -> float | None:
        found = kernel(cases, name, **inputs)
        return found["metrics"]["time_ms"]["p50"] * 1e3 if found else None

    return measure


def _tflops(name: str, **inputs: object) -> Callable[[list[Case]], float | None]:
    def measure(cases: list[Case]) -> float | None:
        found = kernel(cases, name, **inputs)
        return found["metrics"]["tflops"] if found else None

    return measure


def _tpot_ms(model: str, input_len: int, batch_size: int) -> Callable[[list[Case]], float | None]:
    def measure(cases: list[Case]) -> float | None:
        found = latency(cases, model=model, input_len=input_len, batch_size=batch_size)
        tpot = found["metrics"]["tpot_ms"] if found else None
        return tpot["p50"] if tpot else None

    return measure


def _prefill_tflops(model: str, input_len: int) -> Callable[[list[Case]], float | None]:
    def measure(cases: list[Case]) -> float | None:
        found = latency(cases, model=model, input_len=input_len, batch_size=1)
        ttft = found["metrics"]["ttft_ms"] if found else None
        return found["bytes"]["prefill_flops"] / ttft["p50"] / 1e9 if found and ttft else None

    return measure


def _prefill_share(model: str, input_len: int) -> Callable[[list[Case]], float | None]:
    def measure(cases: list[Case]) -> float | None:
        found = latency(cases, model=model, input_len=input_len, batch_size=1)
        tflops, can = _prefill_tflops(model, input_len)(cases), found["roofline"]["tflops_measured"] if found else None
        return 100 * tflops / can if tflops and can else None

    return measure


def _flops_share(name: str, **inputs: object) -> Callable[[list[Case]], float | None]:
    def measure(cases: list[Case]) -> float | None:
        found = kernel(cases, name, **inputs)
        mfu = found["roofline"]["mfu"] if found else None
        return None if mfu is None else 100 * mfu

    return measure


def _tpot_share(model: str, input_len: int, batch_size: int) -> Callable[[list[Case]], float | None]:
    def measure(cases: list[Case]) -> float | None:
        found = latency(cases, model=model, input_len=input_len, batch_size=batch_size)
        mbu = found["roofline"]["mbu"] if found else None
        return None if mbu is None else 100 * mbu

    return measure


def _fp8_speedup(**inputs: object) -> Callable[[list[Case]], float | None]:
    def measure(cases: list[Case]) -> float | None:
        times = [_microseconds("paged_decode", **inputs, kv_cache_dtype=dtype)(cases) for dtype in ("bf16", "fp8")]
        return times[0] / times[1] if times[0] and times[1] else None

    return measure


def _decode(batch_size: int, context: int) -> dict[str, object]:
    of_llama: dict[str, object] = {"model": "llama-3.1-8b", "kv_cache_dtype": "bf16"}
    return of_llama | {"batch_size": batch_size, "context": context}


K = 1024
PREFILL: dict[str, object] = {"model": "llama-3.1-8b", "kv_cache_dtype": "bf16"}
READ, FLOPS = "% of read", "% of matmul"
# Times of an H200 that reads 4.3 TB/s, and TFLOP/s of a Hopper that multiplies with 800. The shares beside them are the
# same aims: what must be read, over 4.3 TB/s, over the time; and the TFLOP/s over 800.
TARGETS = (
    Target("decode 32 x 4k", READ, 90, 96, _share("paged_decode", **_decode(32, 4 * K))),
    Target("decode 32 x 4k", "us", 139, 130, _microseconds("paged_decode", **_decode(32, 4 * K)), H200),
    Target("decode 8 x 16k", READ, 90, 96, _share("paged_decode", **_decode(8, 16 * K))),
    Target("decode 1 x 128k", READ, 90, 96, _share("paged_decode", **_decode(1, 128 * K))),
    Target("decode 1 x 32k", READ, 80, 90, _share("paged_decode", **_decode(1, 32 * K))),
    Target("decode 1 x 32k", "us", 39, 35, _microseconds("paged_decode", **_decode(1, 32 * K)), H200),
    Target("decode 1 x 1k", "us", 12, 7, _microseconds("paged_decode", **_decode(1, K)), H200),
    Target(
        "fp8 cache, 32 x 4k", "x of bf16", 1.7, 1.85, _fp8_speedup(model="llama-3.1-8b", batch_size=32, context=4 * K)
    ),
    Target("prefill of 8k", FLOPS, 54, 75, _flops_share("paged_prefill", **PREFILL, query_len=8 * K)),
    Target("prefill of 8k", "TFLOP/s", 430, 600, _tflops("paged_prefill", **PREFILL, query_len=8 * K), HOPPER),
    Target("prefill of 16k", FLOPS, 54, 75, _flops_share("paged_prefill", **PREFILL, query_len=16 * K)),
    Target("prefill of 16k", "TFLOP/s", 430, 600, _tflops("paged_prefill", **PREFILL, query_len=16 * K), HOPPER),
    Target("MLA decode, 16 heads", READ, 80, 90, _share("mla_decode", model="deepseek-v2-lite", batch_size=32)),
    Target("MLA decode, 128 heads", FLOPS, 56, 69, _flops_share("mla_decode", model="deepseek-v3", batch_size=32)),
    Target("MLA decode, 128 heads", "TFLOP/s", 450, 550, _tflops("mla_decode", model="deepseek-v3"), HOPPER),
    Target("Llama-3.1-8B, 1 at 1k", READ, 87, 93, _tpot_share("llama-3.1-8b", K, 1)),
    Target("Llama-3.1-8B, 1 at 1k", "ms TPOT", 4.05, 3.77, _tpot_ms("llama-3.1-8b", K, 1), H200),
    Target("Llama-3.1-8B, 64 at 4k", READ, 86, 93, _tpot_share("llama-3.1-8b", 4 * K, 64)),
    Target("Llama-3.1-8B, 64 at 4k", "ms TPOT", 13.3, 12.4, _tpot_ms("llama-3.1-8b", 4 * K, 64), H200),
    Target("Llama-3.2-1B, 1 at 1k", READ, 68, 83, _tpot_share("llama-3.2-1b", K, 1)),
    Target("Llama-3.2-1B, 1 at 1k", "ms TPOT", 0.85, 0.70, _tpot_ms("llama-3.2-1b", K, 1), H200),
    Target("Qwen3-0.6B, 1 at 1k", READ, 51, 61, _tpot_share("qwen3-0.6b", K, 1)),
    Target("Qwen3-0.6B, 1 at 1k", "ms TPOT", 0.60, 0.50, _tpot_ms("qwen3-0.6b", K, 1), H200),
    Target("DeepSeek-V2-Lite, 1 at 1k", READ, 51, 67, _tpot_share("deepseek-v2-lite", K, 1)),
    Target("DeepSeek-V2-Lite, 1 at 1k", "ms TPOT", 2.1, 1.6, _tpot_ms("deepseek-v2-lite", K, 1), H200),
    Target("Llama-3.1-8B, prefill of 8k", FLOPS, 68, 80, _prefill_share("llama-3.1-8b", 8 * K)),
    Target("Llama-3.1-8B, prefill of 8k", "TFLOP/s", 540, 640, _prefill_tflops("llama-3.1-8b", 8 * K), HOPPER),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A target beside what was measured. `verdict`: ambitious | met | missed | not measured."""

    target: str
    unit: str
    must: float
    ambitious: float
    measured: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Behind:
    """A point at which a peer was faster: `ratio` is its time / ours, under 1."""

    point: str
    peer: str
    metric: str
    ratio: float


def write_targets(folder: Path) -> str:
    """targets.json and targets.md in `folder`, of all its documents; the text of the second."""
    found = judged(read_documents(sorted(folder.rglob("*.json"))))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in found.items():
        write_atomic(folder / name, data)
    return found["targets.md"].decode()


def judged(documents: Sequence[Document]) -> dict[str, bytes]:
    """targets.json and targets.md of these documents; of two with one figure the first counts."""
    measured = [case for document in documents for case in document["cases"]]
    wrong = [case for case in measured if case.get("check", {}).get("outputs_equal") is False]
    cases = [case for case in measured if case not in wrong]
    environment = next((document["environment"] for document in documents), {})
    found = {
        "environment": environment,
        "limits": limits(cases),
        "targets": [asdict(row) for row in rows(cases, environment)],
        "peers": sorted({peer["name"] for case in cases for peer in case.get("peers", ()) if _ratios(peer)}),
        "behind": [asdict(point) for point in behind(cases)],
        "is_tuned": is_tuned(str(environment.get("gpu"))),
        "wrong": [f"{case['inputs'].get('model')} {case['name']}" for case in wrong],
    }
    return {
        "targets.json": (json.dumps(found, indent=1) + "\n").encode(),
        "targets.md": as_markdown(found).encode(),
    }


def read_documents(paths: Iterable[Path]) -> list[Document]:
    """Those of these files that are documents of kernels or of a benchmark, in their order."""
    return [found for path in paths if (found := _document(path)) is not None]


def _document(path: Path) -> Document | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("schema") in SCHEMAS else None


def limits(cases: Iterable[Case]) -> dict[str, float]:
    """The most that any of the cases was measured beside: GB/s read, and TFLOP/s of a matrix product."""
    names = ("read_gbps_measured", "tflops_measured")
    found = {name: [case["roofline"][name] for case in cases if case["roofline"].get(name)] for name in names}
    return {name: max(values) for name, values in found.items() if values}


def is_tuned(card: str) -> bool:
    """Whether kvtool has tiles that were timed on this card, on shapes that are among those of the targets."""
    return (CARDS / file_name(card)).is_file()


def rows(cases: list[Case], environment: dict[str, Any]) -> list[Row]:
    """One for each target that a figure of the card is held to."""
    found = []
    for target in TARGETS:
        if target.is_for(str(environment.get("gpu"))):
            measured = target.measure(cases)
            verdict = "not measured" if measured is None else target.verdict(measured)
            found.append(Row(target.name, target.unit, target.must, target.ambitious, measured, verdict))
    return found


def behind(cases: Iterable[Case]) -> list[Behind]:
    """Every point of the grid at which a peer that ran was faster, beyond what its samples leave open."""
    return [
        Behind(point=f"{case['inputs'].get('model')} {case['name']}", peer=peer["name"], metric=metric, ratio=ratio)
        for case in cases
        for peer in case.get("peers", ())
        for metric, ratio in _ratios(peer).items()
        if _at_most(peer, metric) < 1
    ]


def _at_most(peer: dict[str, Any], metric: str) -> float:
    """The upper end of a ratio's interval; the ratio itself where there is none."""
    high = peer.get(f"{metric}_ci_high")
    return float(peer[metric] if high is None else high)


def _ratios(peer: dict[str, Any]) -> dict[str, float]:
    """Its times / ours, those that were measured."""
    return {metric: peer[metric] for metric in RATIOS if peer.get(metric) is not None}


def as_markdown(found: dict[str, Any]) -> str:
    """The card, a table of targets, and where a peer was ahead."""
    environment = found["environment"]
    lines = [
        f"{environment.get('gpu') or 'No GPU'}, driver {environment.get('gpu_driver')}, torch "
        f"{environment.get('torch')}, triton {environment.get('triton')}, {str(environment.get('date_utc'))[:10]}."
        f"{_limits_line(found['limits'])}",
        "",
        "| target | unit | must | ambitious | measured | |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["targets"]:
        measured = "-" if row["measured"] is None else f"{row['measured']:.3g}"
        cells = (row["target"], row["unit"], f"{row['must']:g}", f"{row['ambitious']:g}", measured, row["verdict"])
        lines.append(f"| {' | '.join(cells)} |")
    if found["is_tuned"]:
        lines += ["", "Tiles of the attention kernels were tuned on this card, on shapes of these targets."]
    if found["wrong"]:
        lines += ["", f"Not judged, since another output than the reference's came out: {'; '.join(found['wrong'])}."]
    lines += ["", *_peer_lines(found["peers"], found["behind"])]
    return "\n".join(lines) + "\n"


def _limits_line(found: dict[str, float]) -> str:
    """What the shares are of, where it was measured."""
    if len(found) < 2:
        return ""
    read, matmul = found["read_gbps_measured"], found["tflops_measured"]
    return f" Measured in the same run: {read:,.0f} GB/s read, {matmul:,.0f} TFLOP/s of a matrix product."


def _peer_lines(peers: list[str], points: list[dict[str, Any]]) -> list[str]:
    if not peers:
        return ["No peer ran."]
    ran = f"Peers that ran: {', '.join(peers)}."
    if not points:
        return [f"{ran} None was ahead at any point."]
    return [
        f"{ran} One was ahead, by its whole interval, at:",
        "",
        *(f"- {p['point']}: {p['peer']}, {p['ratio']:.2f} of our {RATIOS[p['metric']]}" for p in points),
    ]


if __name__ == "__main__":
    print(write_targets(Path(sys.argv[1])), end="")
