// fermi._C.Tensor.
#include "tensor.h"

#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <string>

#include "backend.h"
#include "bindings.h"

namespace fermi::python {
namespace {

using Extents = std::vector<std::int64_t>;

/// Element codes of the struct module; bfloat16 shows as uint16.
std::string format_of(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return "f";
        case DType::f16:
            return "e";
        case DType::bf16:
            return "H";
        case DType::f64:
            return "d";
        case DType::i8:
            return "b";
        case DType::u8:
            return "B";
        case DType::i16:
            return "h";
        case DType::i32:
            return "i";
        case DType::i64:
            return "q";
        case DType::boolean:
            return "?";
    }
    throw InvalidArgument("buffer: unknown dtype");
}

py::buffer_info buffer_of(const Tensor& tensor) {
    require_readable(tensor, "buffer");
    const auto size = static_cast<py::ssize_t>(size_of(tensor.dtype()));
    std::vector<py::ssize_t> strides;
    for (const std::int64_t stride : tensor.strides()) strides.push_back(stride * size);
    return {tensor.bytes_data(),
            size,
            format_of(tensor.dtype()),
            tensor.rank(),
            std::vector<py::ssize_t>(tensor.shape().begin(), tensor.shape().end()),
            std::move(strides),
            !tensor.writable()};
}

Tensor empty(const Extents& shape, const std::string& dtype_name, Backend* backend) {
    const DType dtype = parse_dtype(dtype_name);
    const Dims dims(shape);
    if (backend == nullptr) return Tensor::empty(dtype, dims);
    return {backend->allocate(contiguous_bytes(dtype, dims)), dtype, dims, contiguous_strides(dims), 0};
}

Tensor zeros(const Extents& shape, const std::string& dtype, Backend* backend) {
    Tensor tensor = empty(shape, dtype, backend);
    if (tensor.elements() == 0) return tensor;
    const bool here = tensor.device() == Device{};
    const Tensor source = here ? tensor : Tensor::empty(tensor.dtype(), tensor.shape());
    without_gil([&] {
        std::memset(source.bytes_data(), 0, source.bytes());
        if (here) return;
        backend->copy(tensor, source);
        backend->synchronize();  // before the source goes
    });
    return tensor;
}

py::tuple tuple_of(const Dims& dims) {
    py::tuple tuple(static_cast<std::size_t>(dims.rank()));
    for (int axis = 0; axis < dims.rank(); ++axis) tuple[static_cast<std::size_t>(axis)] = dims[axis];
    return tuple;
}

std::vector<Tensor> split(const Tensor& tensor, const Extents& sizes, int axis) {
    std::vector<Tensor> parts;
    std::int64_t start = 0;
    for (const std::int64_t size : sizes) {
        parts.push_back(tensor.narrow(axis, start, size));
        start += size;
    }
    require(!sizes.empty() && start == tensor.size(axis), "split: the sizes add up to ", start, ", not to the axis of ",
            tensor.shape());
    return parts;
}

}  // namespace

DType parse_dtype(std::string_view name) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64, DType::i8, DType::u8, DType::i16,
                              DType::i32, DType::i64, DType::boolean}) {
        if (name == name_of(dtype)) return dtype;
    }
    throw InvalidArgument(message("dtype: \"", name, "\" is none of f32, f16, bf16, f64, i8, u8, i16, i32, i64, bool"));
}

void require_readable(const Tensor& tensor, std::string_view method) {
    require(tensor.device() == Device{}, method, ": the tensor is on ", tensor.device(), ", not on the CPU");
    require(tensor.storage()->data() != nullptr || tensor.elements() == 0, method,
            ": the tensor belongs to a recording that is not closed");
}

void bind_tensor(py::module_& module) {
    py::class_<Tensor> tensor(module, "Tensor", py::buffer_protocol(), py::is_final(),
                              "A strided view over memory of one device. No arithmetic: ops do that.");
    forbid_new(tensor);
    tensor.def_static("empty", &empty, py::arg("shape"), py::arg("dtype") = "f32", py::arg("backend") = py::none())
        .def_static("zeros", &zeros, py::arg("shape"), py::arg("dtype") = "f32", py::arg("backend") = py::none())
        .def_static("from_numpy", &from_numpy, py::arg("array"), py::arg("dtype") = py::none())
        .def_static("from_dlpack", &from_dlpack, py::arg("source"))
        .def("numpy", [](const py::object& self) { return to_numpy(self); })
        .def("float32", &to_float32)
        .def("__dlpack__", &to_dlpack, py::kw_only(), py::arg("stream") = py::none(),
             py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
        .def("__dlpack_device__",
             [](const Tensor& self) {
                 const int kind = self.device().type == DeviceType::cpu    ? 1
                                  : self.device().type == DeviceType::cuda ? 2
                                                                           : 8;
                 return std::pair(kind, self.device().index);
             })
        .def_buffer(&buffer_of)
        .def_property_readonly("shape", [](const Tensor& self) { return tuple_of(self.shape()); })
        .def_property_readonly("strides", [](const Tensor& self) { return tuple_of(self.strides()); })
        .def_property_readonly("dtype", [](const Tensor& self) { return std::string(name_of(self.dtype())); })
        .def_property_readonly("device", [](const Tensor& self) { return message(self.device()); })
        .def_property_readonly("nbytes", &Tensor::bytes)
        .def_property_readonly("contiguous", &Tensor::contiguous)
        .def_property_readonly("writable", &Tensor::writable)
        .def_property_readonly("address",
                               [](const Tensor& self) { return reinterpret_cast<std::uintptr_t>(self.bytes_data()); })
        .def("narrow", &Tensor::narrow, py::arg("axis"), py::arg("start"), py::arg("length"))
        .def(
            "unflatten",
            [](const Tensor& self, int axis, const Extents& sizes) { return self.unflatten(axis, Dims(sizes)); },
            py::arg("axis"), py::arg("sizes"))
        .def(
            "reshape", [](const Tensor& self, const Extents& shape) { return self.reshape(Dims(shape)); },
            py::arg("shape"))
        .def("transpose", &Tensor::transpose, py::arg("first"), py::arg("second"))
        .def("split", &split, py::arg("sizes"), py::arg("axis") = -1)
        .def("__repr__", [](const Tensor& self) { return message("Tensor(", self, ", ", self.device(), ")"); });
}

}  // namespace fermi::python
