"""How a prompt is written down for a server: token ids for completions, or words for chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from kvtool.engine.endpoint.answer import Answer
from kvtool.system.errors import KvtoolError

Prompt = list[Any]
"""Token ids, or messages."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What every request asks besides its prompt. `pinned`: that the answer is exactly as long as asked for."""

    model: str
    pinned: bool = True
    ids_back: bool = False

    def body(self, output_len: int, **prompt: Any) -> bytes:
        """The JSON of a request; greedy, streamed, with the server's own counts at the end."""
        fields: dict[str, Any] = {
            "model": self.model,
            **prompt,
            "max_tokens": output_len,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.pinned:
            fields |= {"ignore_eos": True, "min_tokens": output_len}
        if self.ids_back:
            fields["return_token_ids"] = True
        return msgspec.json.encode(fields)


class Wire(Protocol):
    """A route of the server, and how prompts are written for it."""

    @property
    def path(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    def start(self, own_ids: Sequence[int]) -> Prompt:
        """The prompt of a request that goes on from nothing."""
        ...

    def go_on(self, prompt: Prompt, answer: Answer, own_ids: Sequence[int]) -> Prompt:
        """The prompt of the next turn, behind a prompt and what the model answered."""
        ...

    def body(self, asking: Asking, prompt: Prompt, output_len: int) -> bytes:
        """The request."""
        ...


@dataclass(frozen=True, slots=True)
class Completions:
    """Prompts are token ids, so that their lengths are exact. Drawn from the middle of the vocabulary: special tokens
    stand at its ends. `vocab_size` is that of what is drawn."""

    model_vocab_size: int
    tokenizer: Tokenizer | None = None
    path: str = "/v1/completions"

    @property
    def _first(self) -> int:
        return min(1000, self.model_vocab_size // 8)

    @property
    def vocab_size(self) -> int:
        return max(1, self.model_vocab_size // 2)

    def start(self, own_ids: Sequence[int]) -> Prompt:
        return [self._first + token for token in own_ids]

    def go_on(self, prompt: Prompt, answer: Answer, own_ids: Sequence[int]) -> Prompt:
        said = answer.token_ids
        if said is None and self.tokenizer is not None:
            said = self.tokenizer.encode(answer.text)
        if said is None:
            raise KvtoolError(
                "a turn goes on from the tokens of an answer, which this server does not send: name its --tokenizer"
            )
        return [*prompt, *said, *self.start(own_ids)]

    def body(self, asking: Asking, prompt: Prompt, output_len: int) -> bytes:
        return asking.body(output_len, prompt=prompt)


@dataclass(frozen=True, slots=True)
class Chat:
    """Prompts are words that the tokenizer makes one token each of; the server's template stands around them."""

    words: tuple[str, ...]
    path: str = "/v1/chat/completions"

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def start(self, own_ids: Sequence[int]) -> Prompt:
        return [{"role": "user", "content": "".join(self.words[token] for token in own_ids)}]

    def go_on(self, prompt: Prompt, answer: Answer, own_ids: Sequence[int]) -> Prompt:
        return [*prompt, {"role": "assistant", "content": answer.text}, *self.start(own_ids)]

    def body(self, asking: Asking, prompt: Prompt, output_len: int) -> bytes:
        return asking.body(output_len, messages=prompt)


def chat_words(tokenizer: Tokenizer, vocab_size: int) -> tuple[str, ...]:
    """Lower-case words with a blank before them that are one token each, alone and behind each other. Raises
    KvtoolError for a tokenizer that has few."""
    found = []
    for token in range(vocab_size):
        text = tokenizer.decode([token])
        is_word = text[:1] == " " and text[1:].isalpha() and text.isascii() and text.islower()
        if is_word and tokenizer.encode(text) == [token]:
            found.append(text)
    if len(found) < 64:
        raise KvtoolError(f"the tokenizer has only {len(found)} words of one token: --chat has no prompts to make")
    return tuple(found)
