"""Tensors seen from Python: views, NumPy, the buffer protocol and DLPack, all without copies."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fermi import _C

NUMPY_DTYPES: dict[_C.DTypeName, type[np.generic]] = {
    "f32": np.float32,
    "f16": np.float16,
    "f64": np.float64,
    "i8": np.int8,
    "u8": np.uint8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "bool": np.bool_,
}


def address_of(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", [*NUMPY_DTYPES, "bf16"])
def test_new_tensors_have_shape_and_dtype(dtype: _C.DTypeName) -> None:
    tensor = _C.Tensor.zeros([2, 3], dtype)
    assert (tensor.shape, tensor.strides, tensor.dtype, tensor.device) == ((2, 3), (3, 1), dtype, "cpu")
    assert tensor.contiguous
    assert tensor.writable
    assert tensor.address % 64 == 0
    assert tensor.nbytes == tensor.numpy().nbytes
    assert not tensor.numpy().any()
    assert repr(tensor) == f"Tensor({dtype}[2, 3], cpu)"
    assert _C.Tensor.empty((), dtype).shape == ()
    assert _C.Tensor.empty([0, 3], dtype, _C.open_backend(threads=1)).nbytes == 0


@pytest.mark.parametrize("shape", [[-1], [2**62], [2**40, 2**40, 0], [1] * 7])
def test_impossible_shapes_are_refused(shape: list[int]) -> None:
    with pytest.raises(ValueError, match=r"tensor: "):
        _C.Tensor.empty(shape)


def test_too_much_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        _C.Tensor.empty([2**58])
    with pytest.raises(MemoryError):
        _C.Tensor.empty([2**58], backend=_C.open_backend(threads=1))


def test_unknown_dtypes_are_named() -> None:
    with pytest.raises(ValueError, match='"f8" is none of f32, f16, bf16'):
        _C.Tensor.empty([1], "f8")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "numpy_dtype"), NUMPY_DTYPES.items())
def test_arrays_are_shared_both_ways(name: str, numpy_dtype: type[np.generic]) -> None:
    array = np.arange(6).reshape(2, 3).astype(numpy_dtype)
    tensor = _C.Tensor.from_numpy(array)
    assert tensor.dtype == name
    assert tensor.address == address_of(array)
    back = tensor.numpy()
    assert address_of(back) == address_of(array)
    back[1, 2] = 0
    assert not array[1, 2]


@given(
    arrays.arrays(np.int16, arrays.array_shapes(max_dims=5, max_side=5, min_side=0)).flatmap(
        lambda array: st.tuples(st.just(array), arrays.basic_indices(array.shape, allow_ellipsis=False))
    )
)
def test_any_view_of_an_array_is_shared(case: tuple[np.ndarray[Any, Any], Any]) -> None:
    array, index = case
    view = np.asarray(array[index])
    tensor = _C.Tensor.from_numpy(view)
    assert tensor.shape == view.shape
    np.testing.assert_array_equal(tensor.numpy(), view)
    np.testing.assert_array_equal(np.asarray(tensor), view)
    np.testing.assert_array_equal(np.from_dlpack(tensor), view)
    if view.size:
        assert tensor.address == address_of(view)


def test_broadcast_and_transposed_arrays_are_shared() -> None:
    row = np.arange(3, dtype=np.float32)
    broadcast = np.broadcast_to(row, (4, 3))
    tensor = _C.Tensor.from_numpy(broadcast)
    assert tensor.strides == (0, 1)
    assert not tensor.writable
    np.testing.assert_array_equal(tensor.numpy(), broadcast)
    assert _C.Tensor.from_numpy(np.zeros((2, 3)).T).strides == (1, 3)


def test_bfloat16_is_uint16_in_numpy() -> None:
    bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)
    tensor = _C.Tensor.from_numpy(bits, "bf16")
    assert tensor.dtype == "bf16"
    np.testing.assert_array_equal(tensor.numpy(), bits)
    np.testing.assert_array_equal(tensor.float32(), [1.0, -2.0, np.inf])


def test_arrays_that_cannot_be_shared_are_refused() -> None:
    for array in (np.zeros(2, ">f4"), np.zeros(2, np.complex64), np.zeros(2, np.uint16), np.array(["a"])):
        with pytest.raises(ValueError, match="there is no dtype"):
            _C.Tensor.from_numpy(array)
    with pytest.raises(ValueError, match="an array of f32 cannot be read as f16"):
        _C.Tensor.from_numpy(np.zeros(2, np.float32), "f16")
    with pytest.raises(ValueError, match="not multiples of the element size"):
        _C.Tensor.from_numpy(np.zeros(2, [("a", np.int8), ("b", np.float32)])["b"])
    with pytest.raises(ValueError, match="not a multiple of 4"):
        _C.Tensor.from_numpy(np.frombuffer(bytearray(9), np.float32, 2, 1))
    with pytest.raises(ValueError, match="rank 7"):
        _C.Tensor.from_numpy(np.zeros([1] * 7))
    with pytest.raises(TypeError):
        _C.Tensor.from_numpy([1.0])  # type: ignore[arg-type]


def test_read_only_arrays_stay_read_only() -> None:
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    tensor = _C.Tensor.from_numpy(array)
    assert not tensor.writable
    assert not tensor.numpy().flags.writeable
    assert memoryview(tensor).readonly
    with pytest.raises(ValueError, match="read-only"):
        _C.copy(tensor, _C.Tensor.zeros([3]))


def test_the_buffer_protocol_shows_strides() -> None:
    tensor = _C.Tensor.from_numpy(np.arange(12, dtype=np.float16).reshape(3, 4)).narrow(1, 1, 2)
    view = memoryview(tensor)
    assert (view.shape, view.strides, view.format, view.itemsize) == ((3, 2), (8, 2), "e", 2)
    np.testing.assert_array_equal(np.array(view), [[1, 2], [5, 6], [9, 10]])
    assert np.shares_memory(np.asarray(tensor), tensor.numpy())


class Array(np.ndarray[Any, Any]):
    """An array that can be watched."""


def test_owners_live_as_long_as_their_views() -> None:
    array = np.arange(4, dtype=np.float32).view(Array)
    watch = weakref.ref(array)
    tensor = _C.Tensor.from_numpy(array).narrow(0, 2, 2)
    del array
    gc.collect()
    assert watch() is not None
    view = tensor.numpy()
    del tensor
    gc.collect()
    assert watch() is not None
    np.testing.assert_array_equal(view, [2, 3])
    del view
    gc.collect()
    assert watch() is None


def test_views_share_memory() -> None:
    tensor = _C.Tensor.from_numpy(np.arange(24, dtype=np.int32).reshape(2, 12))
    array = tensor.numpy()
    np.testing.assert_array_equal(tensor.narrow(-1, 3, 4).numpy(), array[:, 3:7])
    np.testing.assert_array_equal(tensor.unflatten(1, [-1, 4]).numpy(), array.reshape(2, 3, 4))
    np.testing.assert_array_equal(tensor.reshape([4, 6]).numpy(), array.reshape(4, 6))
    np.testing.assert_array_equal(tensor.transpose(0, 1).numpy(), array.T)
    first, second = tensor.split([5, 7])
    np.testing.assert_array_equal(first.numpy(), array[:, :5])
    np.testing.assert_array_equal(second.numpy(), array[:, 5:])
    assert second.address == tensor.address + 5 * 4
    assert [part.shape for part in tensor.split([1, 1], axis=0)] == [(1, 12), (1, 12)]


def test_views_that_do_not_fit_are_refused() -> None:
    tensor = _C.Tensor.zeros([2, 12])
    for wrong in (
        lambda: tensor.narrow(1, 8, 5),
        lambda: tensor.narrow(2, 0, 1),
        lambda: tensor.unflatten(1, [5, -1]),
        lambda: tensor.reshape([25]),
        lambda: tensor.transpose(0, 1).reshape([24]),
        lambda: tensor.transpose(0, 3),
        lambda: tensor.split([5, 6]),
        lambda: tensor.split([]),
        lambda: tensor.split([13, -1]),
    ):
        with pytest.raises(ValueError, match=r"^\w+: "):
            wrong()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_float32_copies(dtype: _C.DTypeName) -> None:
    values = np.array([[0.5, -2.0, 3.0], [1.0, 0.0, -0.25]], np.float32)
    tensor = _C.Tensor.empty([3, 2], dtype).transpose(0, 1)
    _C.copy(tensor, _C.Tensor.from_numpy(values))
    copied = tensor.float32()
    np.testing.assert_array_equal(copied, values)
    copied[:] = 0
    np.testing.assert_array_equal(tensor.float32(), values)
    with pytest.raises(ValueError, match="float32: the tensor holds i32"):
        _C.Tensor.zeros([1], "i32").float32()


@pytest.mark.parametrize("dtype", [*NUMPY_DTYPES, "bf16"])
def test_torch_shares_memory_both_ways(dtype: _C.DTypeName) -> None:
    torch = pytest.importorskip("torch")
    tensor = _C.Tensor.zeros([2, 6], dtype).narrow(1, 1, 3)
    theirs = torch.from_dlpack(tensor)
    assert theirs.data_ptr() == tensor.address
    assert theirs.shape == tensor.shape
    assert theirs.stride() == tensor.strides
    theirs[1, 2] = 1
    ours = _C.Tensor.from_dlpack(theirs)
    assert (ours.address, ours.shape, ours.strides, ours.dtype) == (tensor.address, (2, 3), (6, 1), dtype)
    assert ours.numpy()[1, 2]


def test_torch_memory_lives_as_long_as_its_views() -> None:
    torch = pytest.importorskip("torch")
    tensor = _C.Tensor.from_dlpack(torch.arange(1000, dtype=torch.float32)).narrow(0, 990, 10)
    gc.collect()
    assert tensor.numpy()[-1] == 999
    theirs = torch.from_dlpack(tensor)
    del tensor
    gc.collect()
    assert theirs[-1] == 999


def test_dlpack_refuses_what_it_cannot_share() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="there is no dtype of code 5"):
        _C.Tensor.from_dlpack(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TypeError):
        _C.Tensor.from_dlpack(object())
    tensor = _C.Tensor.zeros([2])
    with pytest.raises(BufferError):
        tensor.__dlpack__(copy=True)
    with pytest.raises(BufferError):
        tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match="stream"):
        tensor.__dlpack__(stream=1)  # type: ignore[arg-type]


def test_dlpack_says_what_is_read_only() -> None:
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    tensor = _C.Tensor.from_numpy(array)
    assert not np.from_dlpack(tensor).flags.writeable
    assert not _C.Tensor.from_dlpack(tensor).writable
    with pytest.raises(BufferError, match="read-only"):
        tensor.__dlpack__()


class OldProducer:
    """Exports as before DLPack 1.0: no arguments, no version."""

    def __init__(self, tensor: _C.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self) -> Any:
        return self.tensor.__dlpack__()


def test_old_capsules_are_understood() -> None:
    tensor = _C.Tensor.from_numpy(np.arange(4, dtype=np.float32))
    ours = _C.Tensor.from_dlpack(OldProducer(tensor))
    assert ours.address == tensor.address
    assert ours.writable


def test_a_capsule_is_taken_once() -> None:
    class Same:
        capsule = _C.Tensor.zeros([2]).__dlpack__()

        def __dlpack__(self, **options: Any) -> Any:
            return self.capsule

    same = Same()
    assert _C.Tensor.from_dlpack(same).shape == (2,)
    with pytest.raises(TypeError, match="no fresh capsule"):
        _C.Tensor.from_dlpack(same)


def test_weights_describe_themselves() -> None:
    weight = _C.Weight(_C.Tensor.zeros([4, 8], "bf16"))
    assert (weight.format, weight.shape, weight.nbytes, weight.data.dtype) == ("dense", (4, 8), 64, "bf16")
    assert repr(weight) == "Weight(bf16[4, 8])"
    for tensor in (_C.Tensor.zeros([4]), _C.Tensor.zeros([4, 8], "i8"), _C.Tensor.zeros([4, 8]).transpose(0, 1)):
        with pytest.raises(ValueError, match="weight: "):
            _C.Weight(tensor)
