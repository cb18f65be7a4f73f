// The vocabulary as functions of the module: one line per op.
#include "ops.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <variant>

#include "bindings.h"

namespace fermi::python {
namespace {

// Lists first: what is no bound type is asked for a conversion, which takes microseconds to fail.
using Weights = std::variant<std::vector<Weight>, Weight>;
using MaybeTensor = std::optional<Tensor>;
using Biases = std::variant<std::monostate, std::vector<std::optional<Tensor>>, Tensor>;

Activation parse_activation(std::string_view name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    if (name == "relu") return Activation::relu;
    if (name == "tanh") return Activation::tanh;
    if (name == "sigmoid") return Activation::sigmoid;
    throw InvalidArgument(message("activation: \"", name, "\" is none of silu, gelu, gelu_tanh, relu, tanh, sigmoid"));
}

NormKind parse_norm(std::string_view name) {
    if (name == "rms") return NormKind::rms;
    if (name == "layer") return NormKind::layer;
    throw InvalidArgument(message("norm_kind \"", name, "\" is none of rms, layer"));
}

Pooling parse_pooling(std::string_view name) {
    if (name == "mean") return Pooling::mean;
    if (name == "max") return Pooling::max;
    if (name == "mean_sqrt_length") return Pooling::mean_sqrt_length;
    if (name == "weighted_mean") return Pooling::weighted_mean;
    throw InvalidArgument(message("pool: \"", name, "\" is none of mean, max, mean_sqrt_length, weighted_mean"));
}

Scoring parse_scoring(std::string_view name) {
    if (name == "softmax") return Scoring::softmax;
    if (name == "sigmoid") return Scoring::sigmoid;
    throw InvalidArgument(message("route: scoring \"", name, "\" is none of softmax, sigmoid"));
}

std::optional<Activation> parse_activation(const std::optional<std::string>& name) {
    return name ? std::optional(parse_activation(std::string_view(*name))) : std::nullopt;
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

Tensor linear_of(const Tensor& x, Weights weights, Biases biases, const MaybeTensor& norm, float epsilon,
                 const std::string& norm_kind, const MaybeTensor& norm_bias,
                 const std::optional<std::string>& activation, float scale, float soft_cap,
                 const MaybeTensor& residual) {
    if (auto* one = std::get_if<Weight>(&weights)) weights = std::vector{std::move(*one)};
    std::vector<Tensor> list;
    if (auto* one = std::get_if<Tensor>(&biases)) list.push_back(std::move(*one));
    if (auto* many = std::get_if<std::vector<std::optional<Tensor>>>(&biases)) {
        for (std::optional<Tensor>& bias : *many) list.push_back(std::move(bias).value_or(Tensor()));
    }
    Normalization how{norm.value_or(Tensor()), epsilon, parse_norm(norm_kind), norm_bias.value_or(Tensor())};
    return linear(x, std::get<std::vector<Weight>>(std::move(weights)), std::move(list),
                  {std::move(how), parse_activation(activation), scale, soft_cap, residual.value_or(Tensor())});
}

}  // namespace

void bind_ops(py::module_& module) {
    using py::arg;
    module.def(
        "embed",
        [](const Tensor& token_ids, const Weight& table, float scale, const MaybeTensor& residual) {
            return embed(token_ids, table, scale, residual.value_or(Tensor()));
        },
        arg("token_ids"), arg("table"), py::kw_only(), arg("scale") = 1.0F, arg("residual") = py::none());
    module.def(
        "rms_norm",
        [](const Tensor& x, const Tensor& weight, float epsilon, const MaybeTensor& residual) {
            return rms_norm(x, weight, epsilon, residual.value_or(Tensor()));
        },
        arg("x"), arg("weight"), arg("epsilon"), py::kw_only(), arg("residual") = py::none());
    module.def(
        "layer_norm",
        [](const Tensor& x, const Tensor& weight, const MaybeTensor& bias, float epsilon, const MaybeTensor& residual) {
            return layer_norm(x, weight, bias.value_or(Tensor()), epsilon, residual.value_or(Tensor()));
        },
        arg("x"), arg("weight"), arg("bias"), arg("epsilon"), py::kw_only(), arg("residual") = py::none());
    module.def("linear", &linear_of, arg("x"), arg("weights"), arg("biases") = py::none(), py::kw_only(),
               arg("norm") = py::none(), arg("epsilon") = 0.0F, arg("norm_kind") = "rms", arg("norm_bias") = py::none(),
               arg("activation") = py::none(), arg("scale") = 1.0F, arg("soft_cap") = 0.0F,
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
        [](const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& angles, const Tensor& slots,
           const Tensor& key_cache, const Tensor& value_cache, const MaybeTensor& key_scales,
           const MaybeTensor& value_scales, const MaybeTensor& q_norm, const MaybeTensor& k_norm, float epsilon) {
            rope_append(q, k, v, angles.value_or(Tensor()), slots, key_cache, value_cache,
                        {key_scales.value_or(Tensor()), value_scales.value_or(Tensor())},
                        {q_norm.value_or(Tensor()), k_norm.value_or(Tensor()), epsilon});
        },
        arg("q"), arg("k"), arg("v"), arg("angles"), arg("slots"), arg("key_cache"), arg("value_cache"), py::kw_only(),
        arg("key_scales") = py::none(), arg("value_scales") = py::none(), arg("q_norm") = py::none(),
        arg("k_norm") = py::none(), arg("epsilon") = 0.0F);
    module.def(
        "attention",
        [](const Tensor& q, const Tensor& key_cache, const Tensor& value_cache, const Tensor& block_tables,
           const Tensor& query_starts, const Tensor& context_lengths, float scale, std::int32_t window, float soft_cap,
           const MaybeTensor& key_scales, const MaybeTensor& value_scales) {
            return attention(q, key_cache, value_cache, block_tables, query_starts, context_lengths,
                             {scale, window, soft_cap},
                             {key_scales.value_or(Tensor()), value_scales.value_or(Tensor())});
        },
        arg("q"), arg("key_cache"), arg("value_cache"), arg("block_tables"), arg("query_starts"),
        arg("context_lengths"), py::kw_only(), arg("scale"), arg("window") = 0, arg("soft_cap") = 0.0F,
        arg("key_scales") = py::none(), arg("value_scales") = py::none());
    module.def("rope", &rope, arg("x"), arg("angles"));
    module.def(
        "encoder_attention",
        [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& starts, float scale, std::int32_t window,
           const MaybeTensor& bias) {
            return encoder_attention(q, k, v, starts, {scale, window}, bias.value_or(Tensor()));
        },
        arg("q"), arg("k"), arg("v"), arg("starts"), py::kw_only(), arg("scale"), arg("window") = 0,
        arg("bias") = py::none());
    module.def(
        "pool",
        [](const Tensor& x, const Tensor& starts, const std::string& pooling) {
            return pool(x, starts, parse_pooling(pooling));
        },
        arg("x"), arg("starts"), py::kw_only(), arg("pooling"));
    module.def(
        "route",
        [](const Tensor& logits, std::int64_t k, const std::string& scoring, bool normalize, float scale) {
            const Routes routes = route(logits, k, parse_scoring(scoring), normalize, scale);
            return py::make_tuple(routes.experts, routes.weights);
        },
        arg("logits"), arg("k"), py::kw_only(), arg("scoring") = "softmax", arg("normalize") = true,
        arg("scale") = 1.0F);
    module.def(
        "expert_linear",
        [](const Tensor& x, const std::vector<std::vector<Weight>>& weights, const Tensor& experts,
           const std::optional<std::string>& activation, const MaybeTensor& route_weights,
           const MaybeTensor& residual) {
            return expert_linear(x, weights, experts, parse_activation(activation), route_weights.value_or(Tensor()),
                                 residual.value_or(Tensor()));
        },
        arg("x"), arg("weights"), arg("experts"), py::kw_only(), arg("activation") = py::none(),
        arg("route_weights") = py::none(), arg("residual") = py::none());
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
