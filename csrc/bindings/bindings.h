// What the files of the Python module share: one function per noun, and conversions of names.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dtype.h"
#include "tensor.h"
#include "weight.h"

namespace fermi::python {

namespace py = pybind11;

void bind_errors(py::module_& module);
void bind_tensor(py::module_& module);
void bind_weight(py::module_& module);
void bind_backend(py::module_& module);
void bind_recording(py::module_& module);
void bind_safetensors(py::module_& module);
void bind_ops(py::module_& module);

/// "f32" → DType::f32. Throws InvalidArgument.
DType parse_dtype(std::string_view name);
/// "int8" → WeightFormat::int8. Throws InvalidArgument for what is not packed.
WeightFormat parse_packed_format(std::string_view name);

/// Throws InvalidArgument unless the tensor's memory can be read from here: on the CPU, and there (a recording's
/// intermediates have none before the recording is closed).
void require_readable(const Tensor& tensor, std::string_view method);

/// NumPy arrays; numpy.cpp.
Tensor from_numpy(const py::object& array, const py::object& dtype);
py::object to_numpy(const py::object& self);
py::object to_float32(const Tensor& tensor);

/// DLPack capsules; dlpack.cpp.
py::object to_dlpack(const Tensor& tensor, const py::object& stream, const py::object& max_version,
                     const py::object& dl_device, const py::object& copy);
Tensor from_dlpack(const py::object& source);

/// Calls work() while other Python threads run. Not pybind11's gil_scoped_release: when the interpreter is shutting
/// down, taking the lock ends a daemon thread by unwinding its stack (until Python 3.14), and out of a destructor that
/// would be the end of the process.
template <class Work>
void without_gil(Work&& work) {
    PyThreadState* const thread = PyEval_SaveThread();
    std::exception_ptr error;
    try {
        work();
    } catch (...) {
        error = std::current_exception();
    }
    PyEval_RestoreThread(thread);
    if (error != nullptr) std::rethrow_exception(error);
}

/// Whether Python can still be called from here: it is there and not shutting down.
bool python_lives();

/// Makes the type's __new__ refuse. pybind11 would hand out an instance over uninitialised memory to whoever calls
/// __new__ without __init__, as copy.copy and pickle do. A type with a constructor defines __new__ as its factory
/// instead: the instance is whole when __init__ sees it, which then has nothing to do.
template <class Class>
void forbid_new(Class& type) {
    const auto name = type.attr("__name__").template cast<std::string>();
    type.def_static("__new__", [name](const py::object&, const py::args&, const py::kwargs&) -> py::object {
        throw py::type_error(name + " has no constructor");
    });
}

/// Keeps a Python object alive from C++, whichever thread drops it.
class PythonOwner {
  public:
    explicit PythonOwner(py::object object) : object_(object.release().ptr()) {}
    PythonOwner(PythonOwner&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    PythonOwner(const PythonOwner&) = delete;
    PythonOwner& operator=(const PythonOwner&) = delete;
    PythonOwner& operator=(PythonOwner&&) = delete;
    ~PythonOwner();

  private:
    PyObject* object_;
};

}  // namespace fermi::python
