from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from kvtool.catalog.checkpoint import has_weights, read_header
from kvtool.errors import KvtoolError


def pack(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: object = (2,), start: int = 0, stop: int = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_a_file_as_the_library_writes_it(tmp_path: Path) -> None:
    tensors = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16), "empty": np.zeros((0, 7), np.int8)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "model.safetensors")
    assert (header.weights_bytes, header.params) == (3 * 4 * 4 + 5 * 2, 17)
    assert {(t.name, t.dtype, t.shape) for t in header.tensors} == {
        ("a", "F32", (3, 4)),
        ("b", "F16", (5,)),
        ("empty", "I8", (0, 7)),
    }
    assert has_weights(tmp_path)
    assert read_header(tmp_path) == header


def shards(folder: Path) -> dict[str, str]:
    save_file({"a": np.zeros(4, np.float32)}, folder / "model-1-of-2.safetensors")
    save_file({"b": np.zeros(6, np.float32), "spare": np.zeros(9, np.float32)}, folder / "model-2-of-2.safetensors")
    weight_map = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_count_what_the_index_lists(tmp_path: Path) -> None:
    shards(tmp_path)
    assert read_header(tmp_path).weights_bytes == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": "model-1-of-2.safetensors"}, "lacks tensor 'c'"),
        ({"c": "model-3-of-2.safetensors"}, "cannot read .*model-3-of-2"),
        ({"c": "../x.safetensors"}, "is not a file beside it"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(tmp_path: Path, change: dict[str, str], message: str) -> None:
    write_index(tmp_path, {**shards(tmp_path), **change})
    with pytest.raises(KvtoolError, match=message):
        read_header(tmp_path)


def test_files_without_a_tensor(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(pack({}))
    with pytest.raises(KvtoolError, match="has no tensors"):
        read_header(tmp_path)


@pytest.mark.parametrize("content", ['{"weight_map": []}', "{}", "[]", "{"])
def test_an_index_without_a_map(tmp_path: Path, content: str) -> None:
    shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(KvtoolError, match=r"index\.json has"):
        read_header(tmp_path)


def test_files_without_an_index_must_not_repeat_a_tensor(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"a": np.zeros(4, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(KvtoolError, match="tensor 'a' is in both"):
        read_header(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert not has_weights(tmp_path)
    with pytest.raises(KvtoolError, match=r"holds no \.safetensors file"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated: 0 bytes"),
        (b"1234567", "is truncated: 7 bytes"),
        (pack({}, length=10**12), "its header of 1000000000000 bytes is not there"),
        (pack({"a": entry()}, b"1234"), "its tensors take 8 bytes, 4 are there"),
        (pack({"a": entry()}, b"123456789"), "its tensors take 8 bytes, 9 are there"),
        (pack(b"not json"), "has a header that is not JSON"),
        (pack(b"[]"), "has a header that is not a JSON object"),
        (pack({"a": 1}), "tensor 'a' has no description"),
        (pack({"a": entry("F33")}, bytes(8)), "has dtype 'F33'"),
        (pack({"a": entry(shape=[-2])}, bytes(8)), "no valid shape"),
        (pack({"a": entry(shape="2")}, bytes(8)), "no valid shape"),
        (pack({"a": entry(start=8, stop=0)}, bytes(8)), "no valid shape"),
        (pack({"a": entry(shape=[3])}, bytes(8)), "cannot take 8 bytes"),
        (pack({"a": entry(), "b": entry(start=4, stop=12)}, bytes(12)), "'b' starts at byte 4, the one before it ends"),
        (pack({"a": entry(), "b": entry(start=12, stop=20)}, bytes(20)), "'b' starts at byte 12"),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(KvtoolError) as refused:
        read_header(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(pack({"a": entry(), "b": entry("BF16", (2, 2), 8, 16)}, bytes(16)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_header(path)
    except KvtoolError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match="cannot read"):
        read_header(tmp_path / "none.safetensors")
