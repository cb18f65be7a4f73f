// fermi._C.Backend and what opens it.
#include "backend.h"

#include <pybind11/stl.h>

#include "bindings.h"
#include "thread_pool.h"

namespace fermi::python {
namespace {

struct Entered {
    Backend* backend;
    BackendScope* scope;  // owned; a plain pointer, as a thread may end within its `with`
};
thread_local std::vector<Entered> entered;

std::shared_ptr<Backend> enter(const std::shared_ptr<Backend>& self) {
    entered.push_back({self.get(), new BackendScope(self)});
    return self;
}

void exit(const std::shared_ptr<Backend>& self, const py::args&) {
    require(!entered.empty() && entered.back().backend == self.get(), "backend: it is not this thread's innermost");
    delete entered.back().scope;
    entered.pop_back();
}

std::shared_ptr<Backend> open(const std::string& device, int threads, const std::string& architecture) {
    BackendOptions options;
    options.threads = threads;
    std::shared_ptr<Backend> backend;
    without_gil([&] { backend = open_backend(Device::parse(device), options, architecture); });
    return backend;
}

}  // namespace

void bind_backend(py::module_& module) {
    py::class_<Backend, std::shared_ptr<Backend>> backend(module, "Backend", py::is_final(),
                                                          "A device that runs recordings.");
    forbid_new(backend);
    backend.def_property_readonly("device", [](const Backend& self) { return message(self.device()); })
        .def_property_readonly("description", &Backend::description)
        .def_property_readonly("architecture", &Backend::architecture)
        .def_property_readonly("threads", &Backend::threads)
        .def("memory",
             [](const Backend& self) {
                 const MemoryInfo info = self.memory();
                 return std::pair(info.free, info.total);
             })
        .def("synchronize", [](Backend& self) { without_gil([&] { self.synchronize(); }); })
        .def("__enter__", &enter)
        .def("__exit__", &exit)
        .def("__repr__", [](const Backend& self) { return message("Backend(", self.description(), ")"); });

    module.def("open_backend", &open, py::arg("device") = "cpu", py::kw_only(), py::arg("threads") = 0,
               py::arg("architecture") = "auto");
    module.def("cpu_architectures", [] { return cpu_architectures(); });
    module.def("devices", [] { return devices(); });
    module.def("physical_cores", &physical_cores);
}

}  // namespace fermi::python
