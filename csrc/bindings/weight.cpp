// fermi._C.Weight.
#include "weight.h"

#include "bindings.h"

namespace fermi::python {

void bind_weight(py::module_& module) {
    py::class_<Weight>(
        module, "Weight", py::is_final(),
        "A matrix of parameters, [out features, in features], in one of the formats fermi computes with.")
        .def_static(
            "__new__", [](const py::object&, const Tensor& data) { return Weight::dense(data); }, py::arg("cls"),
            py::arg("data"))
        .def(py::init(&Weight::dense), py::arg("data"))
        .def_property_readonly("format",
                               [](const Weight& self) {
                                   switch (self.format) {
                                       case WeightFormat::dense:
                                           return "dense";
                                   }
                                   return "?";
                               })
        .def_property_readonly("shape", [](const Weight& self) { return py::make_tuple(self.rows(), self.columns()); })
        .def_property_readonly("nbytes", &Weight::bytes)
        .def_property_readonly("data", [](const Weight& self) { return self.data; })
        .def("__repr__", [](const Weight& self) { return message("Weight(", self, ")"); });
}

}  // namespace fermi::python
