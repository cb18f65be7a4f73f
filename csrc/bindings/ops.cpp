// The vocabulary as functions of the module: one line per op.
#include "ops.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <variant>

#include "bindings.h"

namespace fermi::python {
namespace {

using Weights = std::variant<Weight, std::vector<Weight>>;
using MaybeTensor = std::optional<Tensor>;
using Biases = std::variant<std::monostate, Tensor, std::vector<std::optional<Tensor>>>;

Activation parse_activation(std::string_view name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    if (name == "relu") return Activation::relu;
    throw InvalidArgument(message("activation: \"", name, "\" is none of silu, gelu, gelu_tanh, relu"));
}

RopeRule parse_rule(std::string_view name) {
    if (name == "fixed") return RopeRule::fixed;
    if (name == "dynamic_ntk") return RopeRule::dynamic_ntk;
    if (name == "longrope") return RopeRule::longrope;
    throw InvalidArgument(message("rope_angles: rule \"", name, "\" is none of fixed, dynamic_ntk, longrope"));
}

DType parse_scales(std::string_view name) {
    if (name == "f16") return DType::f16;
    if (name == "f32") return DType::f32;
    throw InvalidArgument(message("quantize: scales \"", name, "\" are none of f16, f32"));
}

Tensor linear_of(const Tensor& x, Weights weights, Biases biases, std::optional<Tensor> norm, float epsilon,
                 const std::optional<std::string>& activation, std::optional<Tensor> residual) {
    if (auto* one = std::get_if<Weight>(&weights)) weights = std::vector{std::move(*one)};
    std::vector<Tensor> list;
    if (auto* one = std::get_if<Tensor>(&biases)) list.push_back(std::move(*one));
    if (auto* many = std::get_if<std::vector<std::optional<Tensor>>>(&biases)) {
        for (std::optional<Tensor>& bias : *many) list.push_back(std::move(bias).value_or(Tensor()));
    }
    Surroundings around{std::move(norm).value_or(Tensor()), epsilon, std::nullopt,
                        std::move(residual).value_or(Tensor())};
    if (activation) around.activation = parse_activation(*activation);
    return linear(x, std::get<std::vector<Weight>>(std::move(weights)), std::move(list), std::move(around));
}

}  // namespace

void bind_ops(py::module_& module) {
    using py::arg;
    module.def("embed", &embed, arg("token_ids"), arg("table"));
    module.def("rms_norm", &rms_norm, arg("x"), arg("weight"), arg("epsilon"));
    module.def("linear", &linear_of, arg("x"), arg("weights"), arg("biases") = py::none(), py::kw_only(),
               arg("norm") = py::none(), arg("epsilon") = 0.0F, arg("activation") = py::none(),
               arg("residual") = py::none());
    module.def(
        "rope_angles",
        [](const Tensor& positions, const Tensor& lengths, const Tensor& frequencies, const std::string& rule,
           float attention_factor, float base, float factor, std::int32_t original_length) {
            return rope_angles(positions, lengths, frequencies,
                               {parse_rule(rule), attention_factor, base, factor, original_length});
        },
        arg("positions"), arg("lengths"), arg("frequencies"), py::kw_only(), arg("rule") = "fixed",
        arg("attention_factor") = 1.0F, arg("base") = 0.0F, arg("factor") = 1.0F, arg("original_length") = 0);
    module.def(
        "rope_append",
        [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& angles, const Tensor& slots,
           const Tensor& key_cache, const Tensor& value_cache, const MaybeTensor& key_scales,
           const MaybeTensor& value_scales, const MaybeTensor& q_norm, const MaybeTensor& k_norm, float epsilon) {
            rope_append(q, k, v, angles, slots, key_cache, value_cache,
                        {key_scales.value_or(Tensor()), value_scales.value_or(Tensor())},
                        {q_norm.value_or(Tensor()), k_norm.value_or(Tensor()), epsilon});
        },
        arg("q"), arg("k"), arg("v"), arg("angles"), arg("slots"), arg("key_cache"), arg("value_cache"), py::kw_only(),
        arg("key_scales") = py::none(), arg("value_scales") = py::none(), arg("q_norm") = py::none(),
        arg("k_norm") = py::none(), arg("epsilon") = 0.0F);
    module.def(
        "attention",
        [](const Tensor& q, const Tensor& key_cache, const Tensor& value_cache, const Tensor& block_tables,
           const Tensor& query_starts, const Tensor& context_lengths, float scale, std::int32_t window,
           const MaybeTensor& key_scales, const MaybeTensor& value_scales) {
            return attention(q, key_cache, value_cache, block_tables, query_starts, context_lengths, scale, window,
                             {key_scales.value_or(Tensor()), value_scales.value_or(Tensor())});
        },
        arg("q"), arg("key_cache"), arg("value_cache"), arg("block_tables"), arg("query_starts"),
        arg("context_lengths"), py::kw_only(), arg("scale"), arg("window") = 0, arg("key_scales") = py::none(),
        arg("value_scales") = py::none());
    module.def("gather_rows", &gather_rows, arg("x"), arg("rows"));
    module.def("copy", &copy, arg("destination"), arg("source"));
    module.def(
        "quantize",
        [](const Tensor& x, const std::string& format, std::int64_t group, bool symmetric, const std::string& scales,
           int candidates, std::optional<Tensor> importance) {
            return quantize(x, {parse_packed_format(format), group, symmetric, parse_scales(scales), candidates},
                            std::move(importance).value_or(Tensor()));
        },
        arg("x"), arg("format"), py::kw_only(), arg("group") = 0, arg("symmetric") = true, arg("scales") = "f16",
        arg("candidates") = 1, arg("importance") = py::none());
}

}  // namespace fermi::python
