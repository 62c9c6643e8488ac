"""What kvtool aims at on a GPU, beside what the documents of a folder say: `python -m tools.targets gpu-report`.

A figure must reach the first number, and better the second. One that no document holds is said to be unmeasured; a
point at which another library was faster is named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvtool.files import write_atomic

Document = dict[str, Any]
Case = dict[str, Any]
RATIOS = {"ratio": "time", "ttft_ratio": "TTFT", "tpot_ratio": "TPOT"}  # of a peer


@dataclass(frozen=True, slots=True)
class Target:
    """`measure` takes the cases of all documents; None where none of them has the figure."""

    name: str
    unit: str
    must: float
    ambitious: float
    measure: Callable[[list[Case]], float | None]
    h100_only: bool = False

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
TARGETS = (
    Target("decode 32 x 4k", "% of read", 90, 96, _share("paged_decode", **_decode(32, 4 * K))),
    Target("decode 8 x 16k", "% of read", 90, 96, _share("paged_decode", **_decode(8, 16 * K))),
    Target("decode 1 x 128k", "% of read", 90, 96, _share("paged_decode", **_decode(1, 128 * K))),
    Target("decode 1 x 32k", "% of read", 80, 90, _share("paged_decode", **_decode(1, 32 * K))),
    Target("decode 1 x 1k", "us", 12, 8, _microseconds("paged_decode", **_decode(1, K)), h100_only=True),
    Target("decode 1 x 4k", "us", 12, 8, _microseconds("paged_decode", **_decode(1, 4 * K)), h100_only=True),
    Target(
        "fp8 cache, 32 x 4k", "x of bf16", 1.7, 1.85, _fp8_speedup(model="llama-3.1-8b", batch_size=32, context=4 * K)
    ),
    Target("prefill of 8k", "TFLOP/s", 430, 520, _tflops("paged_prefill", **PREFILL, query_len=8 * K), h100_only=True),
    Target(
        "prefill of 16k", "TFLOP/s", 430, 520, _tflops("paged_prefill", **PREFILL, query_len=16 * K), h100_only=True
    ),
    Target("MLA decode, 16 heads", "% of read", 80, 90, _share("mla_decode", model="deepseek-v2-lite", batch_size=32)),
    Target(
        "MLA decode, 128 heads",
        "TFLOP/s",
        350,
        450,
        _tflops("mla_decode", model="deepseek-v3", batch_size=32),
        h100_only=True,
    ),
    Target("Llama-3.1-8B, 1 at 1k", "ms TPOT", 5.8, 5.4, _tpot_ms("llama-3.1-8b", K, 1), h100_only=True),
    Target("Llama-3.1-8B, 64 at 4k", "ms TPOT", 19.0, 17.8, _tpot_ms("llama-3.1-8b", 4 * K, 64), h100_only=True),
    Target("Llama-3.2-1B, 1 at 1k", "ms TPOT", 1.15, 1.0, _tpot_ms("llama-3.2-1b", K, 1), h100_only=True),
    Target("Qwen3-0.6B, 1 at 1k", "ms TPOT", 0.75, 0.60, _tpot_ms("qwen3-0.6b", K, 1), h100_only=True),
    Target("DeepSeek-V2-Lite, 1 at 1k", "ms TPOT", 3.0, 2.3, _tpot_ms("deepseek-v2-lite", K, 1), h100_only=True),
    Target("Llama-3.1-8B, prefill of 8k", "TFLOP/s", 540, 640, _prefill_tflops("llama-3.1-8b", 8 * K), h100_only=True),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A target beside what was measured. `verdict`: ambitious | met | missed | not measured | other card."""

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
    documents = read_documents(folder)
    cases = [case for document in documents for case in document["cases"]]
    environment = next((document["environment"] for document in documents), {})
    found = {
        "environment": environment,
        "targets": [asdict(row) for row in rows(cases, environment)],
        "peers": sorted({peer["name"] for case in cases for peer in case.get("peers", ()) if _ratios(peer)}),
        "behind": [asdict(point) for point in behind(cases)],
    }
    text = as_markdown(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "targets.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomic(folder / "targets.md", text.encode())
    return text


def read_documents(folder: Path) -> list[Document]:
    """Every kernels.json and bench.json below the folder, in the order of their paths."""
    paths = sorted(path for name in ("kernels.json", "bench.json") for path in folder.rglob(name))
    return [json.loads(path.read_text()) for path in paths]


def rows(cases: list[Case], environment: dict[str, Any]) -> list[Row]:
    """One for each target."""
    is_h100 = "H100" in str(environment.get("gpu"))
    found = []
    for target in TARGETS:
        measured = target.measure(cases)
        if measured is None:
            verdict = "not measured"
        elif target.h100_only and not is_h100:
            verdict = "other card"
        else:
            verdict = target.verdict(measured)
        found.append(Row(target.name, target.unit, target.must, target.ambitious, measured, verdict))
    return found


def behind(cases: Iterable[Case]) -> list[Behind]:
    """Every point of the grid at which a peer that ran was faster."""
    return [
        Behind(point=f"{case['inputs'].get('model')} {case['name']}", peer=peer["name"], metric=metric, ratio=ratio)
        for case in cases
        for peer in case.get("peers", ())
        for metric, ratio in _ratios(peer).items()
        if ratio < 1
    ]


def _ratios(peer: dict[str, Any]) -> dict[str, float]:
    """Its times / ours, those that were measured."""
    return {metric: peer[metric] for metric in RATIOS if peer.get(metric) is not None}


def as_markdown(found: dict[str, Any]) -> str:
    """The card, a table of targets, and where a peer was ahead."""
    environment = found["environment"]
    lines = [
        f"{environment.get('gpu') or 'No GPU'}, driver {environment.get('gpu_driver')}, torch "
        f"{environment.get('torch')}, triton {environment.get('triton')}, {str(environment.get('date_utc'))[:10]}.",
        "",
        "| target | unit | must | ambitious | measured | |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["targets"]:
        measured = "-" if row["measured"] is None else f"{row['measured']:.3g}"
        cells = (row["target"], row["unit"], f"{row['must']:g}", f"{row['ambitious']:g}", measured, row["verdict"])
        lines.append(f"| {' | '.join(cells)} |")
    if any(row["verdict"] == "other card" for row in found["targets"]):
        lines += ["", "Other card: the aim is an H100's."]
    lines += ["", *_peer_lines(found["peers"], found["behind"])]
    return "\n".join(lines) + "\n"


def _peer_lines(peers: list[str], points: list[dict[str, Any]]) -> list[str]:
    if not peers:
        return ["No peer ran."]
    ran = f"Peers that ran: {', '.join(peers)}."
    if not points:
        return [f"{ran} None was ahead at any point."]
    return [
        f"{ran} One was ahead at:",
        "",
        *(f"- {p['point']}: {p['peer']}, {p['ratio']:.2f} of our {RATIOS[p['metric']]}" for p in points),
    ]


if __name__ == "__main__":
    print(write_targets(Path(sys.argv[1])), end="")
