"""Text in, text out: the tokenizer that lies beside the weights, and text that grows token by token."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from kvtool.system.errors import KvtoolError

ALICE = "alice.txt"  # Lewis Carroll, Alice's Adventures in Wonderland, 1865: chapters 1 to 5, lines joined


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


class FileTokenizer:
    """The tokenizer.json of a model folder."""

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise KvtoolError(
                f"{path} needs the tokenizers package ({error}): install it, or use --prompt-ids"
            ) from error
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exception
            raise KvtoolError(f"{path} is not a readable tokenizer: {error}") from error

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))


def find_tokenizer(weights: str, *, needed: bool = True) -> Tokenizer | None:
    """The tokenizer.json of a weights folder, or beside a .gguf file; None when there is none.

    Where it is not `needed`, as ids come in and ids may go out, one that cannot be read is none either.
    """
    path = Path(weights)
    folder = path if path.is_dir() else path.parent
    file = folder / "tokenizer.json"
    if weights == "random" or not file.is_file():
        return None
    try:
        return FileTokenizer(file)
    except KvtoolError:
        if needed:
            raise
        return None


def shipped_text() -> bytes:
    """The text that comes with kvtool, in the public domain."""
    return (files("kvtool.engine.weights") / ALICE).read_bytes()


class TextStream:
    """Text as it grows: only what is certain not to change with the next token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._shown = 0

    def push(self, token_id: int) -> str:
        """The text that this token adds. Bytes of an unfinished character are held back."""
        self._token_ids.append(token_id)
        text = self._tokenizer.decode(self._token_ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new, self._shown = text[self._shown :], len(text)
        return new
