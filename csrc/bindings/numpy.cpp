// Tensors over NumPy arrays and arrays over tensors, without copies.
#include <pybind11/numpy.h>

#include <algorithm>
#include <string>
#include <utility>

#include "backend.h"
#include "bindings.h"

namespace fermi::python {
namespace {

/// The memory that an array spans, from its lowest address.
class ArrayStorage final : public Storage {
  public:
    ArrayStorage(std::byte* data, std::size_t bytes, bool writable, py::object array)
        : Storage(data, bytes, Device{}), writable_(writable), array_(std::move(array)) {}
    bool writable() const override { return writable_; }

  private:
    bool writable_;
    PythonOwner array_;
};

DType dtype_of(const py::dtype& dtype) {
    const bool native =
        dtype.byteorder() == '=' || dtype.byteorder() == '|' || dtype.byteorder() == (PY_LITTLE_ENDIAN ? '<' : '>');
    if (native) {
        for (const auto& [kind, size, found] : {std::tuple('f', 4, DType::f32),
                                                {'f', 2, DType::f16},
                                                {'f', 8, DType::f64},
                                                {'i', 1, DType::i8},
                                                {'u', 1, DType::u8},
                                                {'i', 2, DType::i16},
                                                {'i', 4, DType::i32},
                                                {'i', 8, DType::i64},
                                                {'b', 1, DType::boolean}}) {
            if (dtype.kind() == kind && dtype.itemsize() == size) return found;
        }
    }
    throw InvalidArgument(message("from_numpy: there is no dtype for arrays of ", std::string(py::str(dtype))));
}

/// NumPy has no bfloat16: it shows as uint16.
py::dtype numpy_dtype(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return py::dtype::of<float>();
        case DType::f16:
            return py::dtype("e");
        case DType::bf16:
            return py::dtype::of<std::uint16_t>();
        case DType::f64:
            return py::dtype::of<double>();
        case DType::i8:
            return py::dtype::of<std::int8_t>();
        case DType::u8:
            return py::dtype::of<std::uint8_t>();
        case DType::i16:
            return py::dtype::of<std::int16_t>();
        case DType::i32:
            return py::dtype::of<std::int32_t>();
        case DType::i64:
            return py::dtype::of<std::int64_t>();
        case DType::boolean:
            return py::dtype::of<bool>();
    }
    throw InvalidArgument("numpy: unknown dtype");
}

DType requested_dtype(const py::dtype& array, const py::object& name) {
    if (!name.is_none()) {
        const DType wanted = parse_dtype(name.cast<std::string>());
        if (wanted == DType::bf16 && array.kind() == 'u' && array.itemsize() == 2) return wanted;
        const DType found = dtype_of(array);
        require(found == wanted, "from_numpy: an array of ", found, " cannot be read as ", wanted);
        return found;
    }
    return dtype_of(array);
}

}  // namespace

bool python_lives() {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsInitialized() != 0 && Py_IsFinalizing() == 0;
#else
    return Py_IsInitialized() != 0 && _Py_IsFinalizing() == 0;
#endif
}

PythonOwner::~PythonOwner() {
    if (object_ == nullptr || !python_lives()) return;
    const py::gil_scoped_acquire gil;
    Py_DECREF(object_);
}

Tensor from_numpy(const py::object& object, const py::object& dtype_name) {
    if (!py::isinstance<py::array>(object)) throw py::type_error("from_numpy: a NumPy array is needed");
    const auto array = py::reinterpret_borrow<py::array>(object);
    const DType dtype = requested_dtype(array.dtype(), dtype_name);
    const auto size = static_cast<std::int64_t>(size_of(dtype));
    require(array.ndim() <= Dims::max_rank, "from_numpy: rank ", array.ndim(), " is above ", Dims::max_rank);

    const Dims shape(std::vector<std::int64_t>(array.shape(), array.shape() + array.ndim()));
    Dims strides = contiguous_strides(shape);
    std::int64_t before = 0;  // bytes that the view reaches below and above its first element
    std::int64_t after = 0;
    if (array.size() > 0) {
        for (int axis = 0; axis < shape.rank(); ++axis) {
            if (shape[axis] == 1) continue;  // NumPy leaves such strides unspecified
            const std::int64_t stride = array.strides(axis);
            require(stride % size == 0, "from_numpy: the strides are not multiples of the element size");
            strides[axis] = stride / size;
            (stride < 0 ? before : after) += (shape[axis] - 1) * stride;
        }
        after += size;
    }
    auto* first = static_cast<std::byte*>(const_cast<void*>(array.data()));
    auto storage = std::make_shared<ArrayStorage>(first + before, static_cast<std::size_t>(after - before),
                                                  array.writeable(), array);
    return {std::move(storage), dtype, shape, strides, static_cast<std::size_t>(-before)};
}

py::object to_numpy(const py::object& self) {
    const auto& tensor = self.cast<const Tensor&>();
    require_readable(tensor, "numpy");
    const auto size = static_cast<py::ssize_t>(size_of(tensor.dtype()));
    std::vector<py::ssize_t> shape(tensor.shape().begin(), tensor.shape().end());
    std::vector<py::ssize_t> strides;
    for (const std::int64_t stride : tensor.strides()) strides.push_back(stride * size);
    py::array array(numpy_dtype(tensor.dtype()), std::move(shape), std::move(strides), tensor.bytes_data(), self);
    if (!tensor.writable()) array.attr("setflags")(py::arg("write") = false);
    return array;
}

py::object to_float32(const Tensor& tensor) {
    require(is_float(tensor.dtype()), "float32: the tensor holds ", tensor.dtype(), ", not a float type");
    py::array array(py::dtype::of<float>(), std::vector<py::ssize_t>(tensor.shape().begin(), tensor.shape().end()));
    const Tensor destination = from_numpy(array, py::none());
    if (tensor.device() == Device{}) require_readable(tensor, "float32");
    without_gil([&] {
        Tensor source = tensor;
        if (source.device() != Device{}) {
            require(source.contiguous(), "float32: a view of device memory must be contiguous");
            source = Tensor::empty(tensor.dtype(), tensor.shape());
            current_backend(tensor.device()).copy(source, tensor);
            current_backend(tensor.device()).synchronize();
        }
        current_backend(Device{}).launch(Copy{destination, source});
    });
    return array;
}

}  // namespace fermi::python
