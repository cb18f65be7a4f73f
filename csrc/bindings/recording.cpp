// fermi._C.Recording.
#include "recording.h"

#include <pybind11/stl.h>

#include <string>

#include "bindings.h"

namespace fermi::python {
namespace {

struct OpCost {
    std::string name;
    std::string text;
    Cost cost;
};

std::vector<OpCost> costs(const Recording& recording) {
    std::vector<OpCost> costs;
    for (const Op& op : recording.ops()) costs.push_back({std::string(name_of(op)), message(op), cost_of(op)});
    return costs;
}

/// The thread keeps a plain pointer to its open recording: a reference of our own holds it until it is closed.
py::object enter(py::object self) {
    self.cast<Recording&>().open();
    self.inc_ref();
    return self;
}

void exit(const py::object& self, const py::object& type, const py::object&, const py::object&) {
    auto& recording = self.cast<Recording&>();
    require(Recording::current() == &recording, "recording: it is not open on this thread");
    self.dec_ref();
    recording.close(!type.is_none());
}

}  // namespace

void bind_recording(py::module_& module) {
    py::class_<OpCost> cost(module, "OpCost", py::is_final(),
                            "One op of a recording: what it must move and do at the least.");
    forbid_new(cost);
    cost.def_property_readonly("name", [](const OpCost& self) { return self.name; })
        .def_property_readonly("text", [](const OpCost& self) { return self.text; })
        .def_property_readonly("bytes", [](const OpCost& self) { return self.cost.bytes; })
        .def_property_readonly("operations", [](const OpCost& self) { return self.cost.operations; })
        .def("__repr__", [](const OpCost& self) {
            return message("OpCost(", self.text, ", bytes ", self.cost.bytes, ", operations ", self.cost.operations,
                           ")");
        });

    py::class_<Recording> recording(module, "Recording", py::is_final(),
                                    "Ops described once and run as often as wanted.");
    forbid_new(recording);
    recording.def("compile", [](Recording& self) { without_gil([&] { self.compile(); }); })
        .def("run", [](Recording& self) { without_gil([&] { self.run(); }); })
        .def_property_readonly("costs", &costs)
        .def_property_readonly("workspace_bytes", &Recording::workspace_bytes)
        .def("__enter__", &enter)
        .def("__exit__", &exit)
        .def("__len__", [](const Recording& self) { return self.ops().size(); })
        .def("__str__", [](const Recording& self) { return message(self); })
        .def("__repr__", [](const Recording& self) {
            return message("Recording(", self.ops().size(), " ops, ", self.workspace_bytes(), " bytes)");
        });

    module.def(
        "record",
        [](std::shared_ptr<Backend> backend, bool batch_invariant) {
            const Numerics numerics = batch_invariant ? Numerics::batch_invariant : Numerics::fast;
            return std::make_unique<Recording>(std::move(backend), numerics);
        },
        py::arg("backend"), py::kw_only(), py::arg("batch_invariant") = false);
}

}  // namespace fermi::python
