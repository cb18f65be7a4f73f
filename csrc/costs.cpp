// What each op must move and do at the least.
#include <algorithm>

#include "operands.h"
#include "ops.h"

namespace fermi {
namespace {

std::uint64_t elements(const Tensor& tensor) {
    return static_cast<std::uint64_t>(tensor.elements());
}
std::uint64_t extent(const Tensor& tensor, int axis) {
    return static_cast<std::uint64_t>(tensor.size(axis));
}

// Floating-point operations; a transcendental function counts as one.
std::uint64_t operations(const Embed& op) {
    return (op.scale != 1.0F ? elements(op.out) : 0) + (op.add ? elements(op.out) : 0);
}
std::uint64_t operations(const Norm& op) {
    return (op.kind == NormKind::layer ? 6 : 4) * elements(op.x) + (op.add ? elements(op.out) : 0);
}
std::uint64_t operations(const RopeAngles& op) {
    return 2 * elements(op.out);
}
std::uint64_t operations(const RopeAppend& op) {
    const std::uint64_t normed = op.q_norm.defined() ? 4 * (elements(op.q) + elements(op.k)) : 0;
    return normed + (op.angles.defined() ? 3 * elements(op.angles) * (extent(op.q, 1) + extent(op.k, 1)) : 0);
}
std::uint64_t operations(const Rope& op) {
    return 3 * elements(op.angles) * extent(op.x, 1);
}
std::uint64_t operations(const Pool& op) {
    return elements(op.x);
}
std::uint64_t operations(const Route& op) {
    return 3 * elements(op.logits);
}
std::uint64_t operations(const GatherRows&) {
    return 0;
}
std::uint64_t operations(const Copy&) {
    return 0;
}
std::uint64_t operations(const Quantize& op) {
    return 4 * elements(op.x) * static_cast<std::uint64_t>(op.candidates);
}
std::uint64_t operations(const Linear& op) {
    const std::uint64_t tokens = extent(op.x, 0), columns = extent(op.x, 1);
    std::uint64_t rows = 0;
    for (const Weight& weight : op.weights) rows += static_cast<std::uint64_t>(weight.rows());
    const std::uint64_t norm = op.norm_kind == NormKind::layer ? 6 : 4;
    return 2 * tokens * columns * rows + (op.norm.defined() ? norm * tokens * columns : 0) +
           ((op.activation ? 5U : 0U) + (op.scale != 1.0F ? 1U : 0U) + (op.soft_cap != 0.0F ? 3U : 0U) +
            (op.add ? 1U : 0U)) *
               elements(op.out);
}

/// Every operand once.
template <class Operation>
std::uint64_t bytes_of_all(const Operation& op) {
    std::uint64_t bytes = 0;
    visit_operands(op, [&](std::string_view, const Tensor& tensor, Access access) {
        if (tensor.defined()) bytes += tensor.bytes() * (access == Access::update ? 2U : 1U);
    });
    return bytes;
}

template <class Operation>
Cost cost(const Operation& op) {
    return {bytes_of_all(op), operations(op)};
}

Cost cost(const Embed& op) {
    const auto rows = static_cast<std::uint64_t>(std::max<std::int64_t>(1, op.table.rows()));
    const std::uint64_t row = (op.table.bytes() + rows - 1) / rows;
    return {op.out.bytes() * (op.add ? 2U : 1U) + op.token_ids.bytes() + extent(op.token_ids, 0) * row, operations(op)};
}

/// Of the keys, or of the values, of all heads at one position.
std::uint64_t bytes_per_position(const Tensor& cache, const Tensor& scales) {
    const std::uint64_t head = extent(cache, 3) * size_of(cache.dtype());
    return extent(cache, 1) * (head + (scales.defined() ? size_of(scales.dtype()) : 0));
}

Cost cost(const RopeAppend& op) {  // the caches: only the new rows
    const std::uint64_t rows = extent(op.k, 0) * bytes_per_position(op.key_cache, op.key_scales);
    const std::uint64_t norms = op.q_norm.defined() ? op.q_norm.bytes() + op.k_norm.bytes() : 0;
    const std::uint64_t angles = op.angles.defined() ? op.angles.bytes() : 0;
    const std::uint64_t read = op.k.bytes() + op.v.bytes() + angles + op.slots.bytes() + norms;
    return {2 * op.q.bytes() + read + 2 * rows, operations(op)};
}

Cost cost(const GatherRows& op) {
    return {2 * op.out.bytes() + op.rows.bytes(), operations(op)};
}

/// Keys that the cache must give, and pairs of query and key, of all sequences; from the lengths where they can be
/// read.
struct Visible {
    std::uint64_t keys = 0;
    std::uint64_t pairs = 0;
};

/// What a sequence's first `length` queries see of each other, themselves included, looking back.
std::uint64_t pairs_back(std::uint64_t length, std::uint64_t window) {
    const std::uint64_t growing = std::min(length, window);
    return growing * (growing + 1) / 2 + (length - growing) * window;
}

/// Elements i and i + 1 of the starts of sequences: how many lie between.
std::int64_t between(const Tensor& starts, std::int64_t i) {
    const auto* values = starts.data<const std::int32_t>();
    return std::max<std::int64_t>(0, std::int64_t{values[i + 1]} - values[i]);
}

bool readable(const Tensor& tensor) {
    return tensor.device().type == DeviceType::cpu && tensor.storage()->data() != nullptr;
}

Visible visible(const Attention& op) {
    Visible total;
    const Tensor& starts = op.query_starts;
    const Tensor& contexts = op.context_lengths;
    if (!readable(starts)) return total;
    for (std::int64_t sequence = 0; sequence < contexts.size(0); ++sequence) {
        const std::int64_t queries = between(starts, sequence);
        const std::int64_t context = contexts.data<const std::int32_t>()[sequence];
        if (queries <= 0 || context < queries) continue;
        const std::int64_t window = op.window > 0 ? op.window : context;
        total.keys += static_cast<std::uint64_t>(std::min(context, queries + window - 1));
        const auto before = static_cast<std::uint64_t>(context - queries), reach = static_cast<std::uint64_t>(window);
        total.pairs += pairs_back(static_cast<std::uint64_t>(context), reach) - pairs_back(before, reach);
    }
    return total;
}

Cost cost(const Attention& op) {
    const Visible seen = visible(op);
    const std::uint64_t head = extent(op.q, 2);
    const std::uint64_t key = bytes_per_position(op.key_cache, op.key_scales);
    const std::uint64_t tables = op.query_starts.bytes() + op.context_lengths.bytes();
    return {op.out.bytes() + op.q.bytes() + tables + 2 * seen.keys * key, 4 * seen.pairs * extent(op.q, 1) * head};
}

/// Every query meets the keys of its sequence that its window lets it see.
Cost cost(const EncoderAttention& op) {
    std::uint64_t pairs = 0;
    if (readable(op.starts)) {
        for (std::int64_t s = 0; s + 1 < op.starts.size(0); ++s) {
            const auto length = static_cast<std::uint64_t>(between(op.starts, s));
            const std::uint64_t reach = op.window > 0 ? static_cast<std::uint64_t>(op.window) + 1 : length;
            pairs += 2 * pairs_back(length, reach) - length;  // back and ahead; each meets itself once
        }
    }
    return {bytes_of_all(op), 4 * pairs * extent(op.q, 1) * extent(op.q, 2)};
}

/// Weights of as many experts as can be in use; which ones they are is known only when it runs.
Cost cost(const ExpertLinear& op) {
    const std::uint64_t rows = elements(op.experts), matrices = static_cast<std::uint64_t>(op.matrices);
    const Weight& weight = op.weights.front();
    const std::uint64_t used = std::min<std::uint64_t>(rows, op.weights.size() / matrices) * matrices;
    const std::uint64_t out = op.out.bytes() * (op.route_weights.defined() ? 2U : 1U);
    const std::uint64_t routes = op.experts.bytes() + (op.route_weights.defined() ? op.route_weights.bytes() : 0);
    const auto size = static_cast<std::uint64_t>(weight.rows()) * static_cast<std::uint64_t>(weight.columns());
    return {out + op.x.bytes() + routes + used * weight.bytes(),
            2 * rows * size * matrices + (op.activation ? 5 * elements(op.out) : 0)};
}

}  // namespace

Cost cost_of(const Op& op) {
    return std::visit([](const auto& each) { return cost(each); }, op);
}

}  // namespace fermi
