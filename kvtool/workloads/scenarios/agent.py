"""Agents: long trajectories that grow by a little each turn, with the published statistics of coding agents.

From DualPath (arXiv 2602.21548): 500 trajectories each at three longest lengths. Turns x (append + answer) is 1.6 times
the total there, since long runs have short turns. Drawn are therefore, for each trajectory, its total length and its
number of turns, whose ratio is the step; the mean of each figure is then the published one.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

from kvtool.workloads.prompts import distinct_tokens, random_tokens
from kvtool.workloads.scenarios.base import Plan, Shape
from kvtool.workloads.scenarios.sessions import Session, converse, lengths_at_rate

WINDOW_TURNS = 3  # measured of each agent, the last ones; what came before is cached before the clock starts
LEAST_STEP_TOKENS = 4
STEP_VARIETY = 4.0  # shape of the gamma distribution of steps within a trajectory, whose spread is not published


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Means over trajectories that are cut at `longest` tokens: turns, tokens that a turn appends, tokens of an answer,
    total length, and length of a prompt."""

    longest: int
    turns: int
    append: int
    answer: int
    total: int
    context: int

    @property
    def start_share(self) -> float:
        """Of a trajectory's total that its first prompt has before anything is appended, from the mean context:
        growing evenly from there to the total."""
        return 2 * self.context / self.total - 1

    @property
    def turns_sigma(self) -> float:
        """Of the lognormal number of turns, for which the mean of steps is the published one: the mean of 1 / turns is
        exp(sigma^2) / mean."""
        grown = (1 - self.start_share) * self.total
        return math.sqrt(math.log(self.turns * (self.append + self.answer) / grown))


PUBLISHED = (
    Published(longest=32768, turns=60, append=608, answer=148, total=28639, context=17183),
    Published(longest=49152, turns=106, append=474, answer=172, total=42607, context=25120),
    Published(longest=65536, turns=157, append=429, answer=176, total=55958, context=32721),
)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Prompt and answer lengths, turn by turn, and what stands before the first append."""

    start_len: int
    prompt_lens: tuple[int, ...]
    output_lens: tuple[int, ...]

    def history_len(self, turn: int) -> int:
        """Tokens before what turn number `turn` appends."""
        return self.prompt_lens[turn - 1] + self.output_lens[turn - 1] if turn else self.start_len


def agent(shape: Shape) -> Plan:
    """Agents in the last turns of their trajectories; with a hit rate, conversations that have it."""
    window = min(WINDOW_TURNS, shape.num_prompts)
    count = shape.num_prompts // window
    rng = random.Random(f"agent {shape.seed}")
    if shape.hit_rate is not None:
        start_len, lengths = lengths_at_rate(shape, "agent", count=count, turns=window)
        histories = [start_len] * count
        answers: list[tuple[int, ...]] = [(shape.output_len,) * len(own) for own in lengths]
    else:
        drawn = trajectories(count, shape.input_len, rng)
        firsts = [max(0, len(own.prompt_lens) - window) for own in drawn]
        histories = [own.history_len(first) for own, first in zip(drawn, firsts, strict=True)]
        lengths = [list(own.prompt_lens[first:]) for own, first in zip(drawn, firsts, strict=True)]
        answers = [own.output_lens[first:] for own, first in zip(drawn, firsts, strict=True)]
    first_ids = distinct_tokens(rng, count, shape.vocab_size)
    sessions = [
        Session((first, *random_tokens(rng, history, shape.vocab_size))[:history], own, said)
        for first, history, own, said in zip(first_ids, histories, lengths, answers, strict=True)
    ]
    return converse(shape, sessions, rng)


def trajectories(count: int, longest: int, rng: random.Random) -> list[Trajectory]:
    """`count` trajectories of up to `longest` tokens: the published ones of the nearest length, scaled to it.

    Their lengths and turns are drawn from evenly spaced quantiles, in random order, so that few of them stand for all.
    """
    row = min(PUBLISHED, key=lambda row: abs(math.log(row.longest / longest)))
    quantiles = [(i + 0.5) / count for i in range(count)]
    lengths, turns = rng.sample(quantiles, count), rng.sample(quantiles, count)
    return [_drawn(row, longest, a, b, rng) for a, b in zip(lengths, turns, strict=True)]


def _drawn(
    row: Published, longest: int, length_quantile: float, turns_quantile: float, rng: random.Random
) -> Trajectory:
    total = longest * length_quantile ** (row.longest / row.total - 1)  # of mean longest * total / row.longest
    start_len = max(1, round(row.start_share * total))
    sigma = row.turns_sigma
    turns = row.turns * math.exp(sigma * NormalDist().inv_cdf(turns_quantile) - sigma**2 / 2)
    grown = max(LEAST_STEP_TOKENS, int(total) - start_len)
    count = max(1, min(round(turns), grown // LEAST_STEP_TOKENS))
    steps = _parts(grown, count, rng)
    answer_share = row.answer / (row.append + row.answer)
    answers = [max(1, min(step - 1, round(step * answer_share))) for step in steps]
    ends = [start_len]
    for step in steps:
        ends.append(ends[-1] + step)
    prompts = (end - said for (_, end), said in zip(pairwise(ends), answers, strict=True))
    return Trajectory(start_len, tuple(prompts), tuple(answers))


def _parts(total: int, count: int, rng: random.Random) -> list[int]:
    """`total` cut at random into `count` parts of 2 tokens or more, which vary by half of their mean."""
    weights = [rng.gammavariate(STEP_VARIETY, 1) for _ in range(count)]
    spare, whole = total - 2 * count, sum(weights)
    ends = [0]
    running = 0.0
    for weight in weights:
        running += weight
        ends.append(round(spare * running / whole))
    return [2 + after - before for before, after in pairwise(ends)]
