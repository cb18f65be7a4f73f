// Ops as text, one line each: outputs = name(operands, scalars).
#include <ostream>

#include "operands.h"
#include "ops.h"

namespace fermi {
namespace {

std::string_view name_of(Activation activation) {
    switch (activation) {
        case Activation::silu:
            return "silu";
        case Activation::gelu:
            return "gelu";
        case Activation::gelu_tanh:
            return "gelu_tanh";
        case Activation::relu:
            return "relu";
        case Activation::tanh:
            return "tanh";
        case Activation::sigmoid:
            return "sigmoid";
    }
    return "?";
}

std::string_view name_of(NormKind kind) {
    return kind == NormKind::rms ? "rms" : "layer";
}

std::string_view name_of(Scoring scoring) {
    return scoring == Scoring::softmax ? "softmax" : "sigmoid";
}

std::string_view name_of(Pooling pooling) {
    switch (pooling) {
        case Pooling::mean:
            return "mean";
        case Pooling::max:
            return "max";
        case Pooling::mean_sqrt_length:
            return "mean_sqrt_length";
        case Pooling::weighted_mean:
            return "weighted_mean";
    }
    return "?";
}

std::string_view name_of(RopeRule rule) {
    switch (rule) {
        case RopeRule::fixed:
            return "fixed";
        case RopeRule::dynamic_ntk:
            return "dynamic_ntk";
        case RopeRule::longrope:
            return "longrope";
    }
    return "?";
}

template <class Operation>
void print_scalars(std::ostream&, const Operation&) {}

void print_scalars(std::ostream& stream, const Embed& op) {
    if (op.scale != 1.0F) stream << ", scale " << op.scale;
}
void print_scalars(std::ostream& stream, const Norm& op) {
    stream << ", " << name_of(op.kind) << ", epsilon " << op.epsilon;
}
void print_scalars(std::ostream& stream, const Linear& op) {
    if (op.norm.defined()) stream << ", " << name_of(op.norm_kind) << ", epsilon " << op.epsilon;
    if (op.activation) stream << ", " << name_of(*op.activation);
    if (op.scale != 1.0F) stream << ", scale " << op.scale;
    if (op.soft_cap != 0.0F) stream << ", soft_cap " << op.soft_cap;
    if (op.numerics == Numerics::batch_invariant) stream << ", batch_invariant";
}
void print_scalars(std::ostream& stream, const RopeAngles& op) {
    stream << ", " << name_of(op.rule) << ", attention_factor " << op.attention_factor;
    if (op.rule == RopeRule::dynamic_ntk) stream << ", base " << op.base << ", factor " << op.factor;
    if (op.rule != RopeRule::fixed) stream << ", original_length " << op.original_length;
}
void print_scalars(std::ostream& stream, const RopeAppend& op) {
    if (op.q_norm.defined()) stream << ", epsilon " << op.epsilon;
}
void print_scalars(std::ostream& stream, const Attention& op) {
    stream << ", scale " << op.scale;
    if (op.soft_cap != 0.0F) stream << ", soft_cap " << op.soft_cap;
    if (op.window > 0) stream << ", window " << op.window;
    if (op.numerics == Numerics::batch_invariant) stream << ", batch_invariant";
}
void print_scalars(std::ostream& stream, const EncoderAttention& op) {
    stream << ", scale " << op.scale;
    if (op.window > 0) stream << ", window " << op.window;
    if (op.numerics == Numerics::batch_invariant) stream << ", batch_invariant";
}
void print_scalars(std::ostream& stream, const Pool& op) {
    stream << ", " << name_of(op.pooling);
}
void print_scalars(std::ostream& stream, const Route& op) {
    stream << ", " << name_of(op.scoring);
    if (op.normalize) stream << ", normalize";
    if (op.scale != 1.0F) stream << ", scale " << op.scale;
}
void print_scalars(std::ostream& stream, const ExpertLinear& op) {
    if (op.activation) stream << ", " << name_of(*op.activation);
    if (op.numerics == Numerics::batch_invariant) stream << ", batch_invariant";
}
void print_scalars(std::ostream& stream, const Quantize& op) {
    stream << ", " << op.out << ", candidates " << op.candidates;
}

}  // namespace

std::ostream& operator<<(std::ostream& stream, const Op& op) {
    std::visit(
        [&](const auto& each) {
            std::string_view separator;
            visit_operands(each, [&](std::string_view, const Tensor& tensor, Access access) {
                if (access == Access::read) return;
                stream << separator << tensor;
                separator = ", ";
            });
            stream << " = " << each.name << '(';
            separator = "";
            visit_operands(each, [&](std::string_view name, const Tensor& tensor, Access access) {
                if (access == Access::write || !tensor.defined()) return;
                stream << separator << name << ' ' << tensor;
                separator = ", ";
            });
            print_scalars(stream, each);
            stream << ')';
        },
        op);
    return stream;
}

}  // namespace fermi
