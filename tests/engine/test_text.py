"""Text that grows token by token, and the tokenizer that lies beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kvtool.engine.text import FileTokenizer, TextStream, find_tokenizer
from kvtool.system.errors import KvtoolError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer of one token a byte, so that most characters beyond ASCII take several."""
    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("text", ["plain text", "naïve café", "日本語", "🙂 and 👩‍💻", "tabs\tand\n\nlines "])
def test_a_stream_shows_whole_characters_and_all_of_them(folder: Path, text: str) -> None:
    tokenizer = find_tokenizer(str(folder))
    assert tokenizer is not None
    stream = TextStream(tokenizer)
    shown = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(shown) == text == tokenizer.decode(tokenizer.encode(text))
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown)


def test_a_tokenizer_is_found_in_a_folder_and_beside_a_gguf_file(folder: Path, tmp_path: Path) -> None:
    assert find_tokenizer(str(folder)) is not None
    assert find_tokenizer(str(folder / "model.gguf")) is not None
    assert find_tokenizer("random") is None
    (tmp_path / "elsewhere").mkdir()
    assert find_tokenizer(str(tmp_path / "elsewhere")) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(KvtoolError, match=r"tokenizer\.json is not a readable tokenizer: ") as error:
        FileTokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(error.value)
