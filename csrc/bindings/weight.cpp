// fermi._C.Weight.
#include "weight.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings.h"

namespace fermi::python {
namespace {

std::optional<Tensor> part(const Tensor& tensor) {
    return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

Weight packed_of(const Tensor& data, const Tensor& scales, std::optional<Tensor> zeros, std::int64_t rows,
                 std::int64_t columns, std::int64_t group) {
    return Weight::packed(data, scales, std::move(zeros).value_or(Tensor()), rows, columns, group);
}

py::tuple tuple_of(const Dims& dims) {
    return py::tuple(py::cast(std::vector<std::int64_t>(dims.begin(), dims.end())));
}

py::tuple packed_shapes(const std::string& format, std::int64_t rows, std::int64_t columns, std::int64_t group) {
    return py::make_tuple(tuple_of(Weight::packed_shape(parse_packed_format(format), rows, columns)),
                          tuple_of(Weight::scales_shape(rows, columns, group)));
}

}  // namespace

WeightFormat parse_packed_format(std::string_view name) {
    for (const WeightFormat format : {WeightFormat::int8, WeightFormat::int4}) {
        if (name == name_of(format)) return format;
    }
    throw InvalidArgument(message("format \"", name, "\" is none of int8, int4"));
}

void bind_weight(py::module_& module) {
    using py::arg;
    py::class_<Weight>(
        module, "Weight", py::is_final(),
        "A matrix of parameters, [out features, in features], in one of the formats fermi computes with.")
        .def_static(
            "__new__", [](const py::object&, const Tensor& data) { return Weight::dense(data); }, arg("cls"),
            arg("data"))
        .def(py::init(&Weight::dense), arg("data"))
        .def_static("packed", &packed_of, arg("data"), arg("scales"), arg("zeros"), arg("rows"), arg("columns"),
                    arg("group"))
        .def_static("packed_shapes", &packed_shapes, arg("format"), arg("rows"), arg("columns"), arg("group"))
        .def("narrow", &Weight::narrow, arg("first_row"), arg("rows"))
        .def_property_readonly("format", [](const Weight& self) { return std::string(name_of(self.format)); })
        .def_property_readonly("shape", [](const Weight& self) { return py::make_tuple(self.rows(), self.columns()); })
        .def_property_readonly("nbytes", &Weight::bytes)
        .def_property_readonly("group", &Weight::group)
        .def_property_readonly("data", [](const Weight& self) { return self.data; })
        .def_property_readonly("scales", [](const Weight& self) { return part(self.scales); })
        .def_property_readonly("zeros", [](const Weight& self) { return part(self.zeros); })
        .def("__repr__", [](const Weight& self) { return message("Weight(", self, ")"); });
}

}  // namespace fermi::python
