"""How long greedy text stays the reference's: that text, given to a format, until it would have gone on otherwise."""

from __future__ import annotations

from dataclasses import replace

from kvtool.bench.accuracy.methods import Method
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from kvtool.units import ceil_div

PROMPTS, PROMPT_TOKENS = 8, 32


def continuations(windows: list[list[int]]) -> list[list[int]]:
    """The beginnings of windows, to go on from."""
    return [window[: min(PROMPT_TOKENS, len(window))] for window in windows[:PROMPTS]]


def continued(loaded: LoadedModel, prompts: list[list[int]], output_len: int) -> list[list[int]]:
    """What the run's own cache makes greedily of each prompt."""
    block_size = loaded.config.block_size
    num_pages = sum(ceil_div(len(prompt) + output_len, block_size) for prompt in prompts)
    engine = Engine(loaded, num_pages=num_pages, config=replace(loaded.config, prefix_caching=False, graphs=False))
    sequences = [engine.add(prompt, SamplingParams(max_tokens=output_len)) for prompt in prompts]
    for _ in engine.run_until_idle():
        pass
    return [sequence.output_ids for sequence in sequences]


def agreements(method: Method, prompts: list[list[int]], expected: list[list[int]]) -> list[int]:
    """Tokens until the format first chooses otherwise. As long as it does not, its text is the one it is given, so that
    a single pass tells what generating would."""
    found = []
    for prompt, tokens in zip(prompts, expected, strict=True):
        token_ids = prompt + tokens[:-1]
        chosen = method.logits(token_ids, method.layers(len(token_ids))).argmax(-1)[len(prompt) - 1 :].tolist()
        same = [ours == theirs for ours, theirs in zip(chosen, tokens, strict=True)]
        found.append(same.index(False) if False in same else len(same))
    return found
