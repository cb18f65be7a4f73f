// y = norm(x) · [W₀; W₁; …]ᵀ + [b₀; b₁; …], gated, activated, scaled, capped or added to the residual stream.
//
// Work is cut into items of some weight rows × some tokens, which lanes take as they get free. What follows a product
// is done by the lane that has computed it, while the results are in its cache.
//
// Where the machine multiplies pairs of bf16, bf16 weights meet activations rounded to bf16, or split into two bf16
// where the tokens are few (then memory is the limit anyway), unless the numerics are to be batch invariant. All other
// products are batch invariant as they are.
#include "cpu/activation.h"
#include "cpu/kernels.h"
#include "cpu/linear_dense.h"
#include "cpu/linear_inputs.h"
#include "cpu/linear_packed.h"
#include "cpu/linear_product.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

InputKind input_kind(const Linear& op) {
    if (op.weights[0].format != WeightFormat::dense) return InputKind::bytes;
    const InputKind other = op.norm.defined() ? InputKind::f32 : InputKind::as_it_is;
    const DType dtype = op.weights[0].data.dtype();
    const bool alike = std::all_of(op.weights.begin(), op.weights.end(),
                                   [&](const Weight& weight) { return weight.data.dtype() == dtype; });
    return alike ? dense_kind(dtype, op.x.size(0), op.x.size(1), op.numerics, other) : other;
}

/// Whether results wait in a buffer for what becomes of them. A bias and the residual stream do without.
bool buffered(const Linear& op) {
    return op.activation.has_value() || op.scale != 1.0F || op.soft_cap != 0.0F;
}
bool gated(const Linear& op) {
    return op.activation.has_value() && op.weights.size() == 2;
}

/// Everything a lane needs to know of the op.
struct Work {
    const Linear& op;
    LinearInputs inputs;
    std::int64_t tokens;   // of an item
    std::int64_t outputs;  // of an item

    Work(const Linear& linear, int lanes)
        : op(linear),
          inputs(linear.x, {input_kind(linear), linear.x.size(1), linear.weights[0].group(), linear.x.size(0)},
                 linear.norm.defined() ? &linear : nullptr),
          tokens(tokens_per_item(inputs.kind(), linear.x.size(0), linear.x.size(1))),
          outputs(outputs_per_item(inputs.kind(), linear.weights[0], linear.x.size(0), linear.out.size(1),
                                   buffered(linear), lanes)) {}

    std::size_t saved_bytes() const {
        return inputs.kind() == InputKind::bytes ? 0 : round_up_size(dense_scratch(tokens));
    }
    std::size_t buffer_bytes() const { return buffered(op) ? op.weights.size() * float_bytes(tokens * outputs) : 0; }
};

/// Memory of a lane while it multiplies.
struct Space {
    Vec* saved;
    float* buffer;  // of results, one part for each weight

    Space(const Work& work, std::byte* own)
        : saved(reinterpret_cast<Vec*>(own)), buffer(reinterpret_cast<float*>(own + work.saved_bytes())) {}
};

void multiply(const Work& work, const std::byte* rows, std::size_t index, const Item& item, const Results& results,
              Vec* saved) {
    const Linear& op = work.op;
    const Tensor* bias = !op.biases.empty() && op.biases[index].defined() ? &op.biases[index] : nullptr;
    multiply(ProductRows{work.inputs.kind(), rows, work.inputs.row_bytes(), work.inputs.rows().bundle},
             op.weights[index], bias, item, results, saved);
}

/// An item by way of the buffer.
void multiply_and_finish(const Work& work, const std::byte* rows, std::size_t index, const Item& item,
                         const Results& results, const Space& space) {
    const std::int64_t n = item.outputs.end - item.outputs.begin;
    const std::size_t part = float_bytes(work.tokens * work.outputs) / sizeof(float);
    multiply(work, rows, index, item, {space.buffer, work.outputs, false}, space.saved);
    const float* other = nullptr;
    if (gated(work.op)) {
        multiply(work, rows, 1, item, {space.buffer + part, work.outputs, false}, space.saved);
        other = space.buffer + part;
    }
    const Finish finish{work.op.scale, work.op.soft_cap, results.add};
    with_activation(work.op.activation, [&]<class Function>(Function) {
        for (std::int64_t t = 0; t < item.tokens.end - item.tokens.begin; ++t) {
            const std::int64_t row = t * work.outputs;
            activate<Function>(space.buffer + row, other == nullptr ? nullptr : other + row,
                               results.data + t * results.stride, n, finish);
        }
    });
}

/// Calls take(weight's index, item, its first result) for the items this lane gets, weight by weight; the items of the
/// same weight rows are neighbours. While memory is the limit, a lane's items are; else lanes share what they read.
template <class Take>
void for_items(const Work& work, const Lane& lane, const Take& take) {
    const Linear& op = work.op;
    const std::int64_t tokens = op.x.size(0);
    const std::int64_t blocks = (tokens + work.tokens - 1) / work.tokens;
    const std::size_t parts = gated(op) ? 1 : op.weights.size();
    const auto items = [&](std::size_t i) { return (op.weights[i].rows() + work.outputs - 1) / work.outputs * blocks; };
    std::int64_t total = 0;
    for (std::size_t i = 0; i < parts; ++i) total += items(i);
    const auto next = [&] { return streams(tokens) ? lane.take_near(total) : lane.take(); };
    for (std::int64_t ticket = next(); ticket < total; ticket = next()) {
        std::size_t i = 0;
        float* out = op.out.data<float>();
        std::int64_t index = ticket;
        for (; index >= items(i); ++i) {
            index -= items(i);
            out += op.weights[i].rows();
        }
        const std::int64_t t = index % blocks * work.tokens, row = index / blocks * work.outputs;
        const Item item{{t, std::min(tokens, t + work.tokens)},
                        {row, std::min(op.weights[i].rows(), row + work.outputs)}};
        take(i, item, out + t * op.out.stride(0) + row);
    }
}

}  // namespace

Scratch scratch_of(const Linear& op, int lanes) {
    const Work work(op, lanes);
    Scratch scratch = work.inputs.scratch();
    scratch.own = round_up_size(scratch.own) + work.saved_bytes() + work.buffer_bytes();
    return scratch;
}

void run(const Linear& op, const Lane& lane) {
    const Work work(op, lane.count);
    const Space space(work, lane.own + round_up_size(work.inputs.scratch().own));
    const std::byte* rows = work.inputs.make(lane);
    for_items(work, lane, [&](std::size_t index, const Item& item, float* out) {
        const Results results{out, op.out.stride(0), op.add};
        buffered(op) ? multiply_and_finish(work, rows, index, item, results, space)
                     : multiply(work, rows, index, item, results, space.saved);
    });
}

}  // namespace fermi::cpu::FERMI_ISA
