// fermi._C.Safetensors.
#include "safetensors.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "bindings.h"

namespace fermi::python {
namespace {

std::unique_ptr<Safetensors> open(const std::filesystem::path& path) {
    std::unique_ptr<Safetensors> file;
    without_gil([&] { file = std::make_unique<Safetensors>(path); });
    return file;
}

}  // namespace

void bind_safetensors(py::module_& module) {
    py::class_<Safetensors>(module, "Safetensors", py::is_final(), "A memory-mapped checkpoint file.")
        .def_static(
            "__new__", [](const py::object&, const std::filesystem::path& path) { return open(path); }, py::arg("cls"),
            py::arg("path"))
        .def(py::init(&open), py::arg("path"))
        .def_property_readonly("metadata", &Safetensors::metadata)
        .def("keys",
             [](const Safetensors& self) {
                 std::vector<std::string> names;
                 for (const auto& [name, tensor] : self.tensors()) names.push_back(name);
                 return names;
             })
        .def("__contains__",
             [](const Safetensors& self, const std::string& name) { return self.tensors().contains(name); })
        .def("__getitem__",
             [](const Safetensors& self, const std::string& name) {
                 const auto found = self.tensors().find(name);
                 if (found == self.tensors().end()) throw py::key_error(name);
                 return found->second;
             })
        .def("__len__", [](const Safetensors& self) { return self.tensors().size(); })
        .def("__repr__", [](const Safetensors& self) {
            return message("Safetensors(", self.path().filename().string(), ", ", self.tensors().size(), " tensors)");
        });
}

}  // namespace fermi::python
