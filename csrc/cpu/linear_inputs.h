// The input of a linear op as its products want it: normalized, and as f32, bf16 or int8 rows in scratch memory.
//
// A row is made from its token alone, always in the same way. Few elements are made by every lane for itself, which
// costs less than waiting for each other; many are shared out, and a barrier follows.
#pragma once

#include <algorithm>
#include <cstring>

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

/// `bf16_terms`: x = high + low, each of them bf16, which keeps 16 bits of its significand (see linear_terms.h).
enum class InputKind : std::uint8_t { as_it_is, f32, bf16, bf16_terms, bytes };

/// Elements of one term of a row.
inline std::int64_t term_stride(std::int64_t columns) {
    return round_up(columns, 64);
}

/// Rows of one kind, made one by one.
struct InputRows {
    InputKind kind;
    std::int64_t columns;
    std::int64_t group;  // of the weight

    /// Bytes from row to row.
    std::int64_t row_bytes() const {
        switch (kind) {
            // An odd number of cache lines, so that the rows of a tile do not drive each other out.
            case InputKind::as_it_is:
            case InputKind::f32:
                return round_up(columns * 4, 128) + 64;
            case InputKind::bf16:
                return round_up(columns * 2, 128) + 64;
            case InputKind::bf16_terms:
                return 4 * term_stride(columns);
            case InputKind::bytes:
                return ByteRows(nullptr, columns, group).row_bytes();
        }
        return 0;
    }

    /// Row `row` of the memory at `rows` from x, [columns], which may be that row where it stays f32.
    void fill(std::byte* rows, std::int64_t row, const float* x) const {
        std::byte* to = rows + row * row_bytes();
        switch (kind) {
            case InputKind::as_it_is:
            case InputKind::f32:
                std::memmove(to, x, static_cast<std::size_t>(columns) * sizeof(float));
                return;
            case InputKind::bf16:
                return round_to_bf16(reinterpret_cast<bf16*>(to), x);
            case InputKind::bf16_terms:
                return split(reinterpret_cast<bf16*>(to), x);
            case InputKind::bytes:
                return ByteRows(rows, columns, group).fill(row, x);
        }
    }

  private:
    /// high and low, zeros beyond the columns.
    void split(bf16* high, const float* x) const {
        const std::int64_t stride = term_stride(columns);
        bf16* low = high + stride;
        for (std::int64_t i = 0; i < stride; i += Vec::width) {
            const auto there = static_cast<int>(std::clamp<std::int64_t>(columns - i, 0, Vec::width));
            const Vec value = there == Vec::width ? load(x + i) : load_partial(x + i, there);
            store(high + i, value);
            store(low + i, value - load(high + i));
        }
    }

    void round_to_bf16(bf16* to, const float* x) const {
        std::int64_t i = 0;
        for (; i + Vec::width <= columns; i += Vec::width) store(to + i, load(x + i));
        const int rest = static_cast<int>(columns - i);
        if (rest > 0) store_partial(to + i, load_partial(x + i, rest), rest);
    }
};

/// How a linear op's input is made, and where it lies.
class LinearInputs {
  public:
    /// `norm`: the op whose norm x passes first, or null.
    LinearInputs(const Tensor& x, const InputRows& rows, const Linear* norm)
        : x_(x), rows_(rows), norm_(norm), tokens_(x.size(0)) {}

    InputKind kind() const { return rows_.kind; }

    /// Bytes of all rows; those in each lane's own memory, whether there or not, come first.
    Scratch scratch() const {
        if (kind() == InputKind::as_it_is) return {};
        const auto rows = static_cast<std::size_t>(tokens_ * row_bytes());
        return {.shared = apart() ? 0 : rows, .own = (apart() ? rows : 0) + normalized_bytes()};
    }

    /// Makes the rows, this lane's share or all of them, and returns where they are. All lanes call it.
    const std::byte* make(const Lane& lane) const {
        if (kind() == InputKind::as_it_is) return reinterpret_cast<const std::byte*>(x_.data<float>());
        auto* normalized = reinterpret_cast<float*>(lane.own);
        std::byte* rows = apart() ? lane.own + normalized_bytes() : lane.shared;
        const Range tokens = apart() ? Range{0, tokens_} : lane.share(tokens_);
        for (std::int64_t t = tokens.begin; t < tokens.end; ++t) fill(rows, t, normalized);
        if (!apart()) lane.wait();
        return rows;
    }

    /// Bytes from row to row of what `make` returns.
    std::int64_t row_bytes() const {
        return kind() == InputKind::as_it_is ? x_.stride(0) * static_cast<std::int64_t>(sizeof(float))
                                             : rows_.row_bytes();
    }

  private:
    static constexpr std::int64_t elements_apart = 32768;

    bool apart() const { return tokens_ * rows_.columns <= elements_apart; }

    /// A row between its norm and its rounding.
    std::size_t normalized_bytes() const {
        const bool between = norm_ != nullptr && kind() != InputKind::f32;
        return between ? float_bytes(rows_.columns) : 0;
    }

    void fill(std::byte* rows, std::int64_t token, float* normalized) const {
        const float* x = x_.data<float>() + token * x_.stride(0);
        if (norm_ != nullptr) {
            if (kind() == InputKind::f32) normalized = reinterpret_cast<float*>(rows + token * row_bytes());
            normalize(normalized, x, rows_.columns, {norm_->norm, norm_->norm_bias, norm_->norm_kind, norm_->epsilon});
            x = normalized;
        }
        rows_.fill(rows, token, x);
    }

    const Tensor& x_;
    InputRows rows_;
    const Linear* norm_;
    std::int64_t tokens_;
};

}  // namespace fermi::cpu::FERMI_ISA
