"""Checkpoint files: agreement with the format's own library, and errors for everything that is not one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fermi import _C

DTYPES = {
    np.float32: "f32",
    np.float16: "f16",
    np.float64: "f64",
    np.int8: "i8",
    np.uint8: "u8",
    np.int16: "i16",
    np.int32: "i32",
    np.int64: "i64",
    np.bool_: "bool",
}

some_arrays = st.sampled_from(sorted(DTYPES, key=lambda dtype: dtype.__name__)).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(tensors=st.dictionaries(names, some_arrays, max_size=6), metadata=st.dictionaries(names, names, max_size=3))
@in_one_folder
def test_files_of_the_library_open(
    tmp_path: Path, tensors: dict[str, np.ndarray[Any, Any]], metadata: dict[str, str]
) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata or None)
    file = _C.Safetensors(path)
    assert file.metadata == metadata
    assert len(file) == len(tensors)
    assert sorted(file.keys()) == sorted(tensors)
    for name, array in tensors.items():
        assert name in file
        tensor = file[name]
        assert tensor.dtype == DTYPES[array.dtype.type]
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)


def file_of(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def opens(path: Path, content: bytes) -> bool:
    """Whether the file opens; if it does, every byte of it can be read. Anything but FormatError fails the test."""
    path.write_bytes(content)
    try:
        file = _C.Safetensors(path)
    except _C.FormatError:
        return False
    for name in file.keys():  # noqa: SIM118
        file[name].numpy().tobytes()
    return True


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
small = st.integers(-1, 20) | st.integers(0, 2**64)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I64", "U8", "F8_E4M3", ""]) | json_values,
        "shape": st.lists(small, max_size=8) | json_values,
        "data_offsets": st.lists(small, max_size=3) | st.tuples(st.just(0), small) | json_values,
        "else": json_values,
    },
)
headers = st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), entries | json_values, max_size=4)


@given(header=headers | json_values, data=st.binary(max_size=40))
@settings(in_one_folder, max_examples=400)
def test_likely_headers_are_no_danger(tmp_path: Path, header: Any, data: bytes) -> None:
    opens(tmp_path / "file", file_of(json.dumps(header).encode(), data))


@given(header=st.binary(max_size=60), data=st.binary(max_size=20))
@in_one_folder
def test_noise_is_no_danger(tmp_path: Path, header: bytes, data: bytes) -> None:
    opens(tmp_path / "file", file_of(header, data))
    opens(tmp_path / "file", header + data)
    opens(tmp_path / "file", file_of(b"{" + header, data))


@given(data=st.data())
@settings(in_one_folder, max_examples=300)
def test_damaged_files_agree_with_the_library(tmp_path: Path, data: st.DataObject) -> None:
    """What we take, the library takes too, with the same contents: we are never the laxer of the two."""
    good = safetensors.numpy.save(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.int8)}, {"format": "pt"}
    )
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] = data.draw(st.sampled_from(b'0123456789[]{}",:xF\x00\xff'))
    content = bytes(damaged[: data.draw(st.sampled_from([len(damaged), len(damaged), len(damaged) // 2]))])
    if opens(tmp_path / "file", content):
        theirs = safetensors.numpy.load(content)
        ours = _C.Safetensors(tmp_path / "file")
        assert set(ours.keys()) == set(theirs)
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name].numpy(), array)


def test_tensors_are_views_of_one_mapping(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.arange(4.0), "b": np.arange(8.0)}, path)
    file = _C.Safetensors(str(path))
    a, b = file["a"], file["b"]
    assert b.address - a.address in (32, -64)
    assert not a.writable
    del file
    path.unlink()
    np.testing.assert_array_equal(b.numpy(), np.arange(8.0))


def test_bfloat16_reaches_torch_without_a_copy(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    ours = _C.Safetensors(tmp_path / "model.safetensors")["weight"]
    assert ours.dtype == "bf16"
    np.testing.assert_array_equal(ours.float32(), weight.float().numpy())


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(_C.FormatError, match=f"^{re.escape(str(tmp_path))}/empty: truncated"):
        _C.Safetensors(tmp_path / "empty")
    with pytest.raises(FileNotFoundError) as caught:
        _C.Safetensors(tmp_path / "missing.safetensors")
    assert caught.value.filename == str(tmp_path / "missing.safetensors")
    with pytest.raises(IsADirectoryError):
        _C.Safetensors(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        _C.Safetensors("/dev/zero")


def test_unknown_names_are_key_errors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(1)}, path)
    file = _C.Safetensors(path)
    assert "b" not in file
    with pytest.raises(KeyError, match="b"):
        file["b"]


def test_names_that_are_not_text_do_not_break_messages(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9"  # a file name that is not UTF-8
    try:
        path.write_bytes(b"1234567")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes only UTF-8")
    with pytest.raises(_C.FormatError, match="truncated"):
        _C.Safetensors(path)
