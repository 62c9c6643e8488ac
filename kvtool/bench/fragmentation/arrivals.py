"""Requests as a chat service sees them: lengths far from each other, beginnings that some of them share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Mean tokens of ShareGPT's prompts and answers, Kwon et al. 2023 (arXiv 2309.06180), section 6.1 and figure 11.
SHAREGPT_PROMPT, SHAREGPT_OUTPUT = 161.31, 337.99
SPREAD = 1.0  # standard deviation of a length's logarithm: the shape of that figure, which has no more than a histogram
GROUPS = 4  # of requests that begin alike
UNIQUE = 1 << 20  # tokens below it are shared


@dataclass(eq=False, slots=True)
class Request:
    """One request, which needs `total_tokens` in the end and has `tokens` so far, its prompt from the beginning."""

    number: int
    prompt_tokens: int
    output_tokens: int
    group: int
    prefix_tokens: int
    tokens: int = 0
    reserve_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    def token_ids(self, count: int) -> list[int]:
        """The first `count` of its tokens: those of its group, then its own."""
        shared = min(count, self.prefix_tokens)
        first = UNIQUE * (self.number + 1)
        return [self.group * self.prefix_tokens + i for i in range(shared)] + list(range(first + shared, first + count))


def chat_requests(count: int, *, max_tokens: int, prefix_tokens: int, seed: int) -> list[Request]:
    """`count` requests of at most `max_tokens`, lognormal lengths with ShareGPT's means; all wait from the start."""
    rng = np.random.default_rng(seed)
    prompts, outputs = (
        np.exp(rng.normal(np.log(mean) - SPREAD**2 / 2, SPREAD, count)).round().astype(int).clip(1)
        for mean in (SHAREGPT_PROMPT, SHAREGPT_OUTPUT)
    )
    found = []
    for number, (prompt, output) in enumerate(zip(prompts.tolist(), outputs.tolist(), strict=True)):
        prompt = min(prompt + prefix_tokens, max_tokens - 1)
        request = Request(
            number=number,
            prompt_tokens=prompt,
            output_tokens=min(output, max_tokens - prompt),
            group=number % GROUPS,
            prefix_tokens=min(prefix_tokens, prompt - 1),
        )
        found.append(request)
    return found
