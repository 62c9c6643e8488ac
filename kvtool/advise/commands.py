"""The commands that check an answer: what kvtool measures, replays or sizes of the same situation."""

from __future__ import annotations

import shlex

from kvtool.advise.serving import Serving
from kvtool.advise.situation import Situation
from kvtool.catalog.gpus import GIVEN_MEMORY

MADE = "made.jsonl"


def bench(situation: Situation, *words: str) -> str:
    """`kvtool bench MODEL` with the lengths of the mean request."""
    traffic = situation.traffic
    lengths = ("--input-len", str(traffic.input_tokens), "--output-len", str(traffic.output_tokens))
    return shlex.join(["kvtool", "bench", situation.name, *lengths, *words])


def traffic(situation: Situation) -> str:
    """The traffic itself: a trace replayed, a scenario run with a prefix cache and without one."""
    if situation.traffic.trace is not None:
        return replay(situation)
    return bench(situation, "--workload", situation.workload)


def replay(situation: Situation, *words: str) -> str:
    """Of the trace; of one that is made alike where there is none."""
    name, made = situation.workload, ""
    if situation.traffic.trace is None:
        name, made = MADE, shlex.join(["kvtool", "trace", "make", *_alike(situation)]) + " && "
    return made + shlex.join(["kvtool", "replay", name, situation.name, *card_words(situation), *words])


def _alike(situation: Situation) -> list[str]:
    """The words of `kvtool trace make` for requests of the same mean lengths."""
    own = situation.traffic
    answers = ["--output-len", str(own.output_tokens)]
    shared = ["--prefix-len", str(own.hit_tokens), "--input-len", str(own.input_tokens - own.hit_tokens), *answers]
    match situation.workload:
        case "agent":
            return ["agents", MADE]
        case "multi-turn":
            return ["multi-turn", MADE, "--input-len", str(own.input_tokens - own.hit_tokens), *answers]
        case "ranking":
            return ["ranking", MADE, "--items", str(own.requests), *shared]
        case "translation" | "few-shot":
            return ["shared-prefix", MADE, "--prefixes", "1" if situation.workload == "translation" else "2", *shared]
        case _:
            return [
                "zipf",
                MADE,
                "--prefixes",
                "1000000",
                "--zipf",
                "0",
                "--input-len",
                str(own.input_tokens),
                *answers,
            ]


def size(situation: Situation, serving: Serving, *words: str) -> str:
    """The memory of the layout, with as many requests as it has in flight."""
    parallel = serving.replica.parallel
    layout = [("--tp", parallel.tp), ("--dp", serving.replicas), ("--dcp", parallel.dcp)]
    return shlex.join(
        [
            *("kvtool", "size", situation.name, *card_words(situation)),
            *("--context", str(situation.traffic.longest_tokens)),
            *("--batch-size", str(serving.batch * serving.replicas)),
            *(word for flag, degree in layout if degree > 1 for word in (flag, str(degree))),
            *words,
        ]
    )


def card_words(situation: Situation) -> list[str]:
    """`--gpu NAME` of the catalogue, and its memory where that was given; a measured machine has its memory alone."""
    gpu = situation.gpu
    name = ["--gpu", gpu.name] if gpu.vendor else []
    return name if name and gpu.memory_source != GIVEN_MEMORY else [*name, "--gpu-memory", str(gpu.memory_bytes)]
