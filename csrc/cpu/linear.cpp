// y = rms_norm(x) · [W₀; W₁; …]ᵀ + [b₀; b₁; …], gated, activated or added to the residual stream.
//
// Work is cut into items of some weight rows × some tokens, which lanes take as they get free. What follows a product
// is done by the lane that has computed it, while the results are in its cache.
//
// Where the machine multiplies pairs of bf16, bf16 weights meet activations rounded to bf16, unless the tokens are few
// (then memory is the limit anyway) or the numerics are to be batch invariant. All other products are batch invariant
// as they are.
#include "cpu/activation.h"
#include "cpu/kernels.h"
#include "cpu/linear_dense.h"
#include "cpu/linear_inputs.h"
#include "cpu/linear_packed.h"
#include "cpu/linear_product.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Up to this many tokens meet bf16 weights in f32.
constexpr std::int64_t exact_tokens = 4;
/// Tokens that an item works on: what they need of x for one panel, or all of their int8 rows, stays in the
/// second-level cache.
constexpr std::int64_t panel_block_tokens = 128;
constexpr std::int64_t byte_block_bytes = 384 << 10;
/// Up to this many tokens, memory is the limit: items are long, since a lane foresees and fetches within its item only.
constexpr std::int64_t stream_tokens = 32;
/// Bytes of weights that an item then has at most, so that lanes end together.
constexpr std::int64_t stream_bytes = 1 << 20;

/// Whether products are of bf16 pairs.
bool rounds_x(const Linear& op) {
    static const bool usable = bf16_dot_usable();
    return usable && op.numerics == Numerics::fast && op.x.size(0) > exact_tokens &&
           std::all_of(op.weights.begin(), op.weights.end(),
                       [](const Weight& weight) { return weight.data.dtype() == DType::bf16; });
}

InputKind input_kind(const Linear& op) {
    if (op.weights[0].format != WeightFormat::dense) return InputKind::bytes;
    if (rounds_x(op)) return InputKind::bf16;
    return op.norm.defined() ? InputKind::f32 : InputKind::as_it_is;
}

/// Whether results wait in a buffer for an activation.
bool buffered(const Linear& op) {
    return op.activation.has_value();
}
bool gated(const Linear& op) {
    return op.activation.has_value() && op.weights.size() == 2;
}

std::int64_t tokens_per_item(const Linear& op, InputKind kind) {
    const std::int64_t tokens = op.x.size(0);
    if (tokens <= 2) return std::max<std::int64_t>(1, tokens);
    std::int64_t fitting = panel_block_tokens;
    if (kind == InputKind::bytes) {
        fitting = std::clamp<std::int64_t>(byte_block_bytes / std::max<std::int64_t>(1, op.x.size(1)), 1, 256);
    }
    const std::int64_t blocks = (tokens + fitting - 1) / fitting;
    // Equal blocks: 257 tokens are not 256 and 1.
    return round_up((tokens + blocks - 1) / blocks, kind == InputKind::bytes ? byte_tile_tokens : tile_rows);
}

/// Small enough for the lanes to end together, large enough to stream. Whole tiles.
std::int64_t outputs_per_item(const Linear& op, InputKind kind, int lanes) {
    const std::int64_t tile = kind == InputKind::bytes ? byte_tile_strips * strip_rows : 2 * tile_columns;
    const std::int64_t rows = op.out.size(1);
    if (op.x.size(0) <= stream_tokens) {
        const auto row_bytes = static_cast<std::int64_t>(op.weights[0].bytes()) / std::max<std::int64_t>(1, rows);
        const std::int64_t most = round_up(stream_bytes / std::max<std::int64_t>(1, row_bytes), tile);
        return std::clamp(round_up(rows / (4 * lanes), tile), tile, most);
    }
    return std::clamp(round_up(rows / (8 * lanes), tile), tile, round_up(buffered(op) ? 32 : 144, tile));
}

/// Everything a lane needs to know of the op.
struct Work {
    const Linear& op;
    LinearInputs inputs;
    std::int64_t tokens;   // of an item
    std::int64_t outputs;  // of an item

    Work(const Linear& linear, int lanes)
        : op(linear),
          inputs(linear.x, {input_kind(linear), linear.x.size(1), linear.weights[0].group()},
                 linear.norm.defined() ? &linear : nullptr),
          tokens(tokens_per_item(linear, inputs.kind())),
          outputs(outputs_per_item(linear, inputs.kind(), lanes)) {}

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
    multiply(ProductRows{work.inputs.kind(), rows, work.inputs.row_bytes()}, op.weights[index], bias, item, results,
             saved);
}

/// to = f(y), or f(y) · other; added to what is there, or in its place.
template <class Function>
void activate(const float* y, const float* other, float* to, std::int64_t n, bool add) {
    for (std::int64_t i = 0; i < n; i += Vec::width) {
        const int count = static_cast<int>(std::min<std::int64_t>(Vec::width, n - i));
        const auto part = [&](const float* from) {
            return count == Vec::width ? load(from + i) : load_partial(from + i, count);
        };
        Vec value = Function::apply(part(y));
        if (other != nullptr) value = value * part(other);
        if (add) value = part(to) + value;
        count == Vec::width ? store(to + i, value) : store_partial(to + i, value, count);
    }
}

/// An item of an op with an activation: by way of the buffer.
void multiply_and_activate(const Work& work, const std::byte* rows, std::size_t index, const Item& item,
                           const Results& results, const Space& space) {
    const std::int64_t n = item.outputs.end - item.outputs.begin;
    const std::size_t part = float_bytes(work.tokens * work.outputs) / sizeof(float);
    multiply(work, rows, index, item, {space.buffer, work.outputs, false}, space.saved);
    const float* other = nullptr;
    if (gated(work.op)) {
        multiply(work, rows, 1, item, {space.buffer + part, work.outputs, false}, space.saved);
        other = space.buffer + part;
    }
    with_activation(*work.op.activation, [&]<class Function>(Function) {
        for (std::int64_t t = 0; t < item.tokens.end - item.tokens.begin; ++t) {
            const std::int64_t row = t * work.outputs;
            activate<Function>(space.buffer + row, other == nullptr ? nullptr : other + row,
                               results.data + t * results.stride, n, results.add);
        }
    });
}

/// Calls take(weight's index, item, its first result) for the items this lane gets, weight by weight; the items of the
/// same weight rows are neighbours, so that the lanes share what they read.
template <class Take>
void for_items(const Work& work, const Lane& lane, const Take& take) {
    const Linear& op = work.op;
    const std::int64_t tokens = op.x.size(0);
    const std::int64_t blocks = (tokens + work.tokens - 1) / work.tokens;
    std::int64_t first = 0;  // the weight's first item
    float* out = op.out.data<float>();
    std::int64_t ticket = lane.take();
    for (std::size_t i = 0; i < (gated(op) ? 1 : op.weights.size()); ++i) {
        const std::int64_t rows = op.weights[i].rows();
        const std::int64_t items = (rows + work.outputs - 1) / work.outputs * blocks;
        for (; ticket < first + items; ticket = lane.take()) {
            const std::int64_t t = (ticket - first) % blocks * work.tokens;
            const std::int64_t row = (ticket - first) / blocks * work.outputs;
            take(i, Item{{t, std::min(tokens, t + work.tokens)}, {row, std::min(rows, row + work.outputs)}},
                 out + t * op.out.stride(0) + row);
        }
        first += items;
        out += rows;
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
        buffered(op) ? multiply_and_activate(work, rows, index, item, results, space)
                     : multiply(work, rows, index, item, results, space.saved);
    });
}

}  // namespace fermi::cpu::FERMI_ISA
