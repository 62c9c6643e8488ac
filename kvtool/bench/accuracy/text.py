"""The text that caches are compared on, as tokens: a user's file, or five chapters that are in the public domain."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from kvtool.engine.text import ALICE, Tokenizer, shipped_text
from kvtool.system.errors import KvtoolError
from kvtool.system.files import read_bytes

LEAST_TOKENS = 3  # one that is given, and two to predict


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids, and the sha256 of the bytes that they were read from."""

    token_ids: list[int]
    sha256: str

    def windows(self, tokens: int) -> list[list[int]]:
        """Pieces of so many tokens, each of which is read on its own; a shorter one at the end where it is the only
        one, or at least half as long."""
        pieces = [self.token_ids[start : start + tokens] for start in range(0, len(self.token_ids), tokens)]
        if len(pieces) > 1 and len(pieces[-1]) < max(LEAST_TOKENS, tokens // 2):
            pieces.pop()
        return pieces


def read_text(path: Path | None, tokenizer: Tokenizer, vocab_size: int) -> Text:
    """The tokens of a file, or of the text that comes with kvtool. Raises KvtoolError for one that says too little."""
    data = read_bytes(path) if path is not None else shipped_text()
    name = str(path or ALICE)
    try:
        token_ids = tokenizer.encode(data.decode())
    except UnicodeDecodeError as error:
        raise KvtoolError(f"{name} is not text in UTF-8 ({error.reason} at byte {error.start})") from error
    if len(token_ids) < LEAST_TOKENS:
        raise KvtoolError(f"{name} has {len(token_ids)} tokens: at least {LEAST_TOKENS} are needed to compare anything")
    if (highest := max(token_ids)) >= vocab_size:
        raise KvtoolError(
            f"the tokenizer gives token {highest}, outside the vocabulary of {vocab_size}: not its model's"
        )
    return Text(token_ids, sha256(data).hexdigest())
