// Exchange of tensors by DLPack: torch, NumPy, JAX and others share memory with us in both directions.
#include <algorithm>
#include <string>
#include <utility>

#include "bindings.h"
#include "dlpack_abi.h"

namespace fermi::python {
namespace {

template <class Capsule>
struct Name;
template <>
struct Name<dlpack::Managed> {
    static constexpr const char* fresh = "dltensor";
    static constexpr const char* used = "used_dltensor";
};
template <>
struct Name<dlpack::ManagedVersioned> {
    static constexpr const char* fresh = "dltensor_versioned";
    static constexpr const char* used = "used_dltensor_versioned";
};

dlpack::DataType data_type(DType dtype) {
    const auto bits = static_cast<std::uint8_t>(8 * size_of(dtype));
    switch (dtype) {
        case DType::f32:
        case DType::f16:
        case DType::f64:
            return {dlpack::code_float, bits, 1};
        case DType::bf16:
            return {dlpack::code_bfloat, bits, 1};
        case DType::i8:
        case DType::i16:
        case DType::i32:
        case DType::i64:
            return {dlpack::code_int, bits, 1};
        case DType::u8:
            return {dlpack::code_uint, bits, 1};
        case DType::boolean:
            return {dlpack::code_bool, bits, 1};
    }
    throw InvalidArgument("dlpack: unknown dtype");
}

DType dtype_of(const dlpack::DataType& type) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64, DType::i8, DType::u8, DType::i16,
                              DType::i32, DType::i64, DType::boolean}) {
        const dlpack::DataType known = data_type(dtype);
        if (known.code == type.code && known.bits == type.bits && type.lanes == 1) return dtype;
    }
    throw InvalidArgument(message("from_dlpack: there is no dtype of code ", int{type.code}, " with ", int{type.bits},
                                  " bits and ", type.lanes, " lanes"));
}

/// The capsule's structure and all that it points to.
template <class Capsule>
struct Exported {
    Capsule managed{};
    Tensor tensor;
    Dims shape;
    Dims strides;
};

template <class Capsule>
py::object export_tensor(const Tensor& tensor) {
    auto exported = std::make_unique<Exported<Capsule>>();
    exported->tensor = tensor;
    exported->shape = tensor.shape();
    exported->strides = tensor.strides();
    Capsule& managed = exported->managed;
    managed.view = {tensor.elements() > 0 ? tensor.bytes_data() : nullptr,
                    {dlpack::device_cpu, 0},
                    tensor.rank(),
                    data_type(tensor.dtype()),
                    tensor.rank() > 0 ? &exported->shape[0] : nullptr,
                    tensor.rank() > 0 ? &exported->strides[0] : nullptr,
                    0};
    managed.context = exported.get();
    managed.deleter = [](Capsule* self) { delete static_cast<Exported<Capsule>*>(self->context); };
    if constexpr (std::is_same_v<Capsule, dlpack::ManagedVersioned>) {
        managed.version = {dlpack::major_version, dlpack::minor_version};
        managed.flags = tensor.writable() ? 0 : dlpack::flag_read_only;
    }
    PyObject* capsule = PyCapsule_New(&managed, Name<Capsule>::fresh, [](PyObject* self) {
        // Whoever took the tensor renamed the capsule and calls the deleter itself.
        if (PyCapsule_IsValid(self, Name<Capsule>::fresh) == 0) return;
        auto* unused = static_cast<Capsule*>(PyCapsule_GetPointer(self, Name<Capsule>::fresh));
        unused->deleter(unused);
    });
    if (capsule == nullptr) throw py::error_already_set();
    static_cast<void>(exported.release());
    return py::reinterpret_steal<py::object>(capsule);
}

/// Memory of another library, given back through its deleter.
template <class Capsule>
class ImportedStorage final : public Storage {
  public:
    ImportedStorage(std::byte* data, std::size_t bytes, bool writable, Capsule* managed)
        : Storage(data, bytes, fermi::Device{}), writable_(writable), managed_(managed) {}
    ~ImportedStorage() override {
        if (managed_->deleter == nullptr || !python_lives()) return;
        const py::gil_scoped_acquire gil;  // the deleter may belong to a Python object
        managed_->deleter(managed_);
    }
    bool writable() const override { return writable_; }

  private:
    bool writable_;
    Capsule* managed_;
};

template <class Capsule>
Tensor import_tensor(PyObject* capsule) {
    auto* managed = static_cast<Capsule*>(PyCapsule_GetPointer(capsule, Name<Capsule>::fresh));
    if (managed == nullptr) throw py::error_already_set();
    bool writable = true;
    if constexpr (std::is_same_v<Capsule, dlpack::ManagedVersioned>) {
        require(managed->version.major == dlpack::major_version, "from_dlpack: version ", managed->version.major,
                " of the protocol is not known");
        writable = (managed->flags & dlpack::flag_read_only) == 0;
    }
    const dlpack::View& view = managed->view;
    require(view.device.type == dlpack::device_cpu, "from_dlpack: the tensor is on a device of kind ", view.device.type,
            ", not on the CPU");
    require(view.rank >= 0 && view.rank <= Dims::max_rank, "from_dlpack: rank ", view.rank, " is above ",
            Dims::max_rank);
    const DType dtype = dtype_of(view.dtype);
    const auto size = static_cast<std::int64_t>(size_of(dtype));
    const auto rank = static_cast<std::size_t>(view.rank);
    const Dims shape(std::span<const std::int64_t>(view.shape, rank));
    const bool empty = contiguous_bytes(dtype, shape) == 0;
    Dims strides = contiguous_strides(shape);
    std::int64_t before = 0;  // bytes
    std::int64_t after = empty ? 0 : size;
    if (!empty) {
        for (int axis = 0; axis < shape.rank(); ++axis) {
            if (shape[axis] > 1 && view.strides != nullptr) strides[axis] = view.strides[axis];
            const std::int64_t reach = (shape[axis] - 1) * strides[axis] * size;
            (reach < 0 ? before : after) += reach;
        }
    }
    std::byte* first = static_cast<std::byte*>(view.data) + (view.data != nullptr ? view.byte_offset : 0);
    auto storage = std::make_shared<ImportedStorage<Capsule>>(first + before, static_cast<std::size_t>(after - before),
                                                              writable, managed);
    if (PyCapsule_SetName(capsule, Name<Capsule>::used) != 0) throw py::error_already_set();  // it is ours from here on
    return {std::move(storage), dtype, shape, strides, static_cast<std::size_t>(-before)};
}

}  // namespace

py::object to_dlpack(const Tensor& tensor, const py::object& stream, const py::object& max_version,
                     const py::object& dl_device, const py::object& copy) {
    require_readable(tensor, "__dlpack__");
    require(stream.is_none(), "__dlpack__: memory of the CPU has no stream");
    const bool elsewhere = !dl_device.is_none() && !dl_device.equal(py::make_tuple(dlpack::device_cpu, 0));
    const bool wants_copy = !copy.is_none() && copy.cast<bool>();
    if (elsewhere || wants_copy) {
        PyErr_SetString(PyExc_BufferError, "__dlpack__: only views of the CPU's memory are exported");
        throw py::error_already_set();
    }
    const bool versioned = !max_version.is_none() && max_version.cast<std::pair<int, int>>().first >= 1;
    if (versioned) return export_tensor<dlpack::ManagedVersioned>(tensor);
    if (!tensor.writable()) {
        PyErr_SetString(PyExc_BufferError, "__dlpack__: read-only memory needs a consumer of DLPack 1.0");
        throw py::error_already_set();
    }
    return export_tensor<dlpack::Managed>(tensor);
}

Tensor from_dlpack(const py::object& source) {
    if (!py::hasattr(source, "__dlpack__")) throw py::type_error("from_dlpack: an object with __dlpack__ is needed");
    py::object capsule;
    try {
        const py::tuple version = py::make_tuple(dlpack::major_version, dlpack::minor_version);
        capsule = source.attr("__dlpack__")(py::arg("max_version") = version);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
        capsule = source.attr("__dlpack__")();  // a producer from before DLPack 1.0
    }
    if (PyCapsule_IsValid(capsule.ptr(), Name<dlpack::ManagedVersioned>::fresh) != 0) {
        return import_tensor<dlpack::ManagedVersioned>(capsule.ptr());
    }
    if (PyCapsule_IsValid(capsule.ptr(), Name<dlpack::Managed>::fresh) != 0) {
        return import_tensor<dlpack::Managed>(capsule.ptr());
    }
    throw py::type_error("from_dlpack: __dlpack__ gave no fresh capsule");
}

}  // namespace fermi::python
