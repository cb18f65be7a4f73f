// The input of a linear op as its products want it: normalized, and as f32, bf16 or int8 rows in scratch memory.
//
// A row is made from its token alone, always in the same way. Few elements are made by every lane for itself, which
// costs less than waiting for each other; many are shared out, and a barrier follows.
#pragma once

#include <algorithm>

#include "cpu/bytes.h"
#include "cpu/lane.h"
#include "cpu/norm.h"
#include "cpu/simd.h"
#include "ops.h"

namespace fermi::cpu::FERMI_ISA {

/// [begin, begin + n) of x rounded to int8: x ≈ scale · q. Returns the scale; `sum` becomes Σ q.
inline float round_to_bytes(const float* x, std::int64_t n, std::int8_t* q, std::int32_t& sum_of_q) {
    const auto magnitude = [](Vec value) { return maximum(value, zero() - value); };
    const int rest = static_cast<int>(n % Vec::width);
    const std::int64_t whole = n - rest;
    Vec most = zero();
    for (std::int64_t i = 0; i < whole; i += Vec::width) most = maximum(most, magnitude(load(x + i)));
    if (rest > 0) most = maximum(most, magnitude(load_partial(x + whole, rest)));
    const float largest_magnitude = largest(most);
    const Vec inverse = broadcast(largest_magnitude > 0.0F ? 127.0F / largest_magnitude : 0.0F);
    Vec total = zero();  // of whole numbers: exact
    const auto round = [&](std::int64_t i, Vec value) {
        const Vec whole_number = minimum(broadcast(127.0F), maximum(broadcast(-127.0F), round_even(value * inverse)));
        store_bytes(q + i, whole_number);
        total = total + whole_number;
    };
    for (std::int64_t i = 0; i < whole; i += Vec::width) round(i, load(x + i));
    if (rest > 0) round(whole, load_partial(x + whole, rest));
    sum_of_q = static_cast<std::int32_t>(sum(total));
    return largest_magnitude / 127.0F;
}

/// Rows of int8 with a scale, and the sum of the integers, for each group of columns.
struct ByteRows {
    static constexpr std::int64_t default_group = 128;

    const std::byte* data;
    std::int64_t columns;
    std::int64_t group;

    ByteRows(const std::byte* rows, std::int64_t columns_, std::int64_t weight_group)
        : data(rows), columns(columns_), group(weight_group == 0 ? default_group : weight_group) {}

    std::int64_t groups() const { return (columns + group - 1) / group; }
    /// A vector may be stored beyond the last column, where zeros meet what pads the weights.
    std::int64_t padded() const { return round_up(columns, 64) + 64; }
    std::int64_t row_bytes() const { return padded() + 2 * round_up(groups() * 4, 64); }

    const std::int8_t* q(std::int64_t token) const {
        return reinterpret_cast<const std::int8_t*>(data + token * row_bytes());
    }
    const float* scales(std::int64_t token) const {
        return reinterpret_cast<const float*>(data + token * row_bytes() + padded());
    }
    const std::int32_t* sums(std::int64_t token) const {
        return reinterpret_cast<const std::int32_t*>(data + token * row_bytes() + padded() +
                                                     round_up(groups() * 4, 64));
    }

    /// Writes row `token` of memory that this object describes.
    void fill(std::int64_t token, const float* x) const {
        auto* bytes = const_cast<std::int8_t*>(q(token));
        auto* each_scale = const_cast<float*>(scales(token));
        auto* each_sum = const_cast<std::int32_t*>(sums(token));
        for (std::int64_t g = 0; g < groups(); ++g) {
            const std::int64_t n = std::min(group, columns - g * group);
            each_scale[g] = round_to_bytes(x + g * group, n, bytes + g * group, each_sum[g]);
        }
        std::fill(bytes + columns, bytes + padded(), std::int8_t{0});
    }
};

enum class InputKind : std::uint8_t { as_it_is, f32, bf16, bytes };

/// How a linear op's input is made, and where it lies.
class LinearInputs {
  public:
    /// `rounds`: products are of bf16 pairs.
    LinearInputs(const Linear& op, bool rounds)
        : op_(op), kind_(kind_of(op, rounds)), tokens_(op.x.size(0)), columns_(op.x.size(1)) {}

    InputKind kind() const { return kind_; }

    /// Bytes of all rows; those in each lane's own memory, whether there or not, come first.
    Scratch scratch() const {
        const auto rows = static_cast<std::size_t>(tokens_ * row_bytes());
        return {.shared = apart() ? 0 : rows, .own = (apart() ? rows : 0) + normalized_bytes()};
    }

    /// Makes the rows, this lane's share or all of them, and returns where they are. All lanes call it.
    const std::byte* make(const Lane& lane) const {
        if (kind_ == InputKind::as_it_is) return nullptr;
        auto* normalized = reinterpret_cast<float*>(lane.own);
        std::byte* rows = apart() ? lane.own + normalized_bytes() : lane.shared;
        const Range tokens = apart() ? Range{0, tokens_} : lane.share(tokens_);
        for (std::int64_t t = tokens.begin; t < tokens.end; ++t) fill(rows, t, normalized);
        if (!apart()) lane.wait();
        return rows;
    }

    /// Bytes from row to row of what `make` returns.
    std::int64_t row_bytes() const {
        switch (kind_) {
            case InputKind::as_it_is:
                return 0;
            // An odd number of cache lines, so that the rows of a tile do not drive each other out.
            case InputKind::f32:
                return round_up(columns_ * 4, 128) + 64;
            case InputKind::bf16:
                return round_up(columns_ * 2, 128) + 64;
            case InputKind::bytes:
                return ByteRows(nullptr, columns_, op_.weights[0].group()).row_bytes();
        }
        return 0;
    }

  private:
    static constexpr std::int64_t elements_apart = 32768;

    static InputKind kind_of(const Linear& op, bool rounds) {
        if (op.weights[0].format != WeightFormat::dense) return InputKind::bytes;
        if (rounds) return InputKind::bf16;
        return op.norm.defined() ? InputKind::f32 : InputKind::as_it_is;
    }

    bool apart() const { return tokens_ * columns_ <= elements_apart; }

    /// A row between its norm and its rounding.
    std::size_t normalized_bytes() const {
        const bool between = op_.norm.defined() && kind_ != InputKind::f32;
        return between ? float_bytes(columns_) : 0;
    }

    void fill(std::byte* rows, std::int64_t token, float* normalized) const {
        const float* x = op_.x.data<float>() + token * op_.x.stride(0);
        std::byte* row = rows + token * row_bytes();
        if (op_.norm.defined()) {
            float* to = kind_ == InputKind::f32 ? reinterpret_cast<float*>(row) : normalized;
            with_float(op_.norm.dtype(),
                       [&]<class T>(T) { normalize(to, x, op_.norm.template data<T>(), columns_, op_.epsilon); });
            x = to;
        }
        if (kind_ == InputKind::bf16) round_to_bf16(reinterpret_cast<bf16*>(row), x);
        if (kind_ == InputKind::bytes) ByteRows(rows, columns_, op_.weights[0].group()).fill(token, x);
    }

    void round_to_bf16(bf16* to, const float* x) const {
        std::int64_t i = 0;
        for (; i + Vec::width <= columns_; i += Vec::width) store(to + i, load(x + i));
        const int rest = static_cast<int>(columns_ - i);
        if (rest > 0) store_partial(to + i, load_partial(x + i, rest), rest);
    }

    const Linear& op_;
    InputKind kind_;
    std::int64_t tokens_;
    std::int64_t columns_;
};

}  // namespace fermi::cpu::FERMI_ISA
