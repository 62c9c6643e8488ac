from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from kvtool.catalog.checkpoint import find_checkpoint, holds_weights, read_header
from kvtool.system.errors import KvtoolError


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
    assert holds_weights(tmp_path)
    assert read_header(tmp_path) == header


BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F16": 16, "BF16": 16, "F32": 32, "C64": 64, "F64": 64} | dict.fromkeys(
    ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8
)
"""Of dtypes that the format names; the library refuses a file of any other size."""


@pytest.mark.parametrize("dtype", BITS)
def test_bytes_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    size = 8 * BITS[dtype] // 8
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack({"a": entry(dtype, (2, 4), 0, size)}, bytes(size)))
    (tensor,) = read_header(path).tensors
    assert (tensor.dtype, tensor.params, tensor.size_bytes) == (dtype, 8, size)


def test_a_file_of_many_gigabytes_is_not_read(tmp_path: Path) -> None:
    size = 64 << 30
    header = pack({"a": entry("BF16", (size // 2,), 0, size)})
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)  # a hole, which takes no room on the disk
    assert read_header(path).weights_bytes == size


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
    with pytest.raises(KvtoolError, match=r"index\.json (has no weight_map|is not JSON)"):
        read_header(tmp_path)


def test_files_without_an_index_must_not_repeat_a_tensor(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"a": np.zeros(4, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(KvtoolError, match="tensor 'a' is in both"):
        read_header(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert not holds_weights(tmp_path)
    with pytest.raises(KvtoolError, match=r"holds no \.safetensors file"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "of 0 bytes is truncated or not a safetensors file: header too small"),
        (b"1234567", "of 7 bytes is truncated or not a safetensors file: header too small"),
        (pack({}, length=10**12), "header too large"),
        (pack({"a": entry()}, b"1234"), "file not fully covered"),
        (pack({"a": entry()}, b"123456789"), "file not fully covered"),
        (pack(b"not json"), "invalid JSON in header"),
        (pack(b"[]"), "invalid JSON in header: invalid type: sequence"),
        (pack({"a": 1}), "invalid type: integer `1`, expected struct TensorInfo"),
        (pack({"a": entry("F33")}, bytes(8)), "unknown variant `F33`, expected one of `BOOL`"),
        (pack({"a": entry(shape=[-2])}, bytes(8)), "invalid value: integer `-2`"),
        (pack({"a": entry(shape="2")}, bytes(8)), 'invalid type: string "2", expected a sequence'),
        (pack({"a": entry(start=8, stop=0)}, bytes(8)), "invalid offset for tensor `a`"),
        (pack({"a": entry(shape=[3])}, bytes(8)), "invalid shape, data type, or offset"),
        (pack({"a": entry(shape=[2**62, 4])}, bytes(8)), "overflow computing buffer size"),
        (pack({"a": entry(), "b": entry(start=4, stop=12)}, bytes(12)), "invalid offset for tensor `b`"),
        (pack({"a": entry(), "b": entry(start=12, stop=20)}, bytes(20)), "invalid offset for tensor `b`"),
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


def test_what_holds_weights(tmp_path: Path) -> None:
    assert not holds_weights(tmp_path)
    assert not holds_weights(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert holds_weights(tmp_path / "model.gguf")
    assert not holds_weights(tmp_path), "of a folder only safetensors are read"
    (tmp_path / "model.safetensors").write_bytes(pack({}))
    assert holds_weights(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match=r"cannot read .*none\.safetensors: No such file or directory$"):
        read_header(tmp_path / "none.safetensors")


def test_weights_in_a_folder_are_counted_from_their_headers(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(pack({"w": entry("BF16", (2, 3), 0, 12)}, bytes(12)))
    for name in (tmp_path, tmp_path / "model.safetensors"):
        header = find_checkpoint(str(name))
        assert header is not None
        assert header.weights_bytes == 12


def test_names_without_weights_have_none(tmp_path: Path) -> None:
    assert find_checkpoint("llama-3.1-8b") is None
    assert find_checkpoint(str(tmp_path)) is None
