// C++ exceptions as Python exceptions.
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>

#include "bindings.h"
#include "error.h"

namespace fermi::python {
namespace {

/// Messages name files, whose bytes need not be UTF-8.
void set_error(PyObject* type, const char* what) {
    PyObject* text = PyUnicode_DecodeUTF8(what, static_cast<Py_ssize_t>(std::strlen(what)), "backslashreplace");
    if (text == nullptr) return;
    PyErr_SetObject(type, text);
    Py_DECREF(text);
}

void set_os_error(const std::filesystem::filesystem_error& error) {
    errno = error.code().value();
    PyObject* path = PyUnicode_DecodeFSDefault(error.path1().c_str());
    if (path == nullptr) return;
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
    Py_DECREF(path);
}

PyObject* new_exception(py::module_& module, const char* name, const char* doc, PyObject* base) {
    const std::string qualified = "fermi._C." + std::string(name);
    PyObject* type = PyErr_NewExceptionWithDoc(qualified.c_str(), doc, base, nullptr);
    if (type == nullptr) throw py::error_already_set();
    module.add_object(name, type);
    return type;
}

// Set once when the module is imported; the translator below is a plain function and cannot carry them.
PyObject* format_error = nullptr;
PyObject* backend_error = nullptr;

void translate(std::exception_ptr pointer) {
    try {
        if (pointer) std::rethrow_exception(pointer);
    } catch (const InvalidArgument& error) {
        set_error(PyExc_ValueError, error.what());
    } catch (const OutOfMemory& error) {
        set_error(PyExc_MemoryError, error.what());
    } catch (const FormatError& error) {
        set_error(format_error, error.what());
    } catch (const BackendError& error) {
        set_error(backend_error, error.what());
    } catch (const Error& error) {
        set_error(PyExc_RuntimeError, error.what());
    } catch (const std::filesystem::filesystem_error& error) {
        set_os_error(error);
    }
}

}  // namespace

void bind_errors(py::module_& module) {
    format_error = new_exception(module, "FormatError",
                                 "A checkpoint file that breaks its format; the message starts with the file's name.",
                                 PyExc_ValueError);
    backend_error = new_exception(module, "BackendError", "A backend that cannot be loaded or that failed at run time.",
                                  PyExc_RuntimeError);
    py::register_local_exception_translator(translate);
}

}  // namespace fermi::python
