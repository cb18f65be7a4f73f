// Rows of activations as int8, laid out as the tiles of packed products read them.
//
// Some rows make a bundle: four columns of the first row, the same four of the next one, and so on, then the next four
// columns. A tile of tokens walks along all its rows with one pointer, and what it reads lies side by side.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/bytes.h"
#include "cpu/lane.h"
#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

/// Rows of a bundle, at most.
inline constexpr std::int64_t bundle_rows = Vec::width == 16 ? 8 : 4;

/// Rows of each bundle of so many tokens: nearly equal numbers.
constexpr std::int64_t rows_of_bundle(std::int64_t tokens) {
    const std::int64_t bundles = std::max<std::int64_t>(1, (tokens + bundle_rows - 1) / bundle_rows);
    return std::max<std::int64_t>(1, (tokens + bundles - 1) / bundles);
}

/// The largest magnitude of x[0, n).
FERMI_INLINE float largest_magnitude(const float* x, std::int64_t n) {
    const auto larger = [](Vec most, Vec value) { return maximum(most, maximum(value, zero() - value)); };
    constexpr int together = 4;  // that need not wait for each other
    Vec most[together] = {zero(), zero(), zero(), zero()};
    std::int64_t i = 0;
    for (; i + together * Vec::width <= n; i += together * Vec::width) {
#pragma GCC unroll 4
        for (int j = 0; j < together; ++j) most[j] = larger(most[j], load(x + i + j * Vec::width));
    }
    for (; i + Vec::width <= n; i += Vec::width) most[0] = larger(most[0], load(x + i));
    if (i < n) most[1] = larger(most[1], load_partial(x + i, static_cast<int>(n - i)));
    return largest(maximum(maximum(most[0], most[1]), maximum(most[2], most[3])));
}

/// q = x · inverse, rounded to int8, of n columns; a whole vector may be written. Returns Σ q.
FERMI_INLINE std::int32_t round_to_bytes(const float* x, std::int64_t n, float inverse, std::int8_t* q) {
    IntVec total = repeat(0);
    const auto round = [&](std::int64_t i, Vec value) {
        const Vec bounded = minimum(broadcast(127.0F), maximum(broadcast(-127.0F), value * broadcast(inverse)));
        const IntVec whole = to_int(bounded);
        store_bytes(q + i, whole);
        total = total + whole;
    };
    std::int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) round(i, load(x + i));
    if (i < n) round(i, load_partial(x + i, static_cast<int>(n - i)));
    return sum(total);
}

/// to[step][row] = from[row][step]: four columns of each of `count` rows, `stride` bytes apart, where a step of `to`
/// has `rows` of them.
inline void interleave(std::int8_t* to, std::int64_t rows, const std::int8_t* from, std::int64_t stride,
                       std::int64_t count, std::int64_t steps) {
    std::int64_t step = 0;
#if defined(FERMI_ISA_AVX512)
    if (count == 8 && rows == 8) {
        for (; step + 16 <= steps; step += 16) interleave_eight(to + step * 32, from + step * 4, stride);
    }
#endif
    for (; step < steps; ++step) {
        for (std::int64_t i = 0; i < count; ++i) {
            std::memcpy(to + (step * rows + i) * 4, from + i * stride + step * 4, 4);
        }
    }
}

/// Bundles of rows of int8, with a scale and the sum of the integers for each row and group of columns. A bundle is
///   q       [padded columns / 4, rows, 4]
///   scales  [groups, rows]
///   sums    [groups, rows]
class ByteRows {
  public:
    static constexpr std::int64_t default_group = 128;

    /// Where a tile reads: at its first row.
    struct Place {
        const std::int8_t* q;
        const float* scales;
        const std::int32_t* sums;
    };

    /// `rows`: of a bundle, bundle_rows at most. `weight_group`: 0 for all columns.
    ByteRows(std::byte* data, std::int64_t columns, std::int64_t weight_group, std::int64_t rows)
        : data_(data),
          columns_(columns),
          group_(weight_group == 0 ? default_group : weight_group),
          groups_((columns + group_ - 1) / group_),
          rows_(rows) {}

    std::int64_t group() const { return group_; }
    std::int64_t groups() const { return groups_; }
    /// Of a bundle.
    std::int64_t rows() const { return rows_; }
    /// Of so many tokens.
    std::int64_t bytes(std::int64_t tokens) const { return (tokens + rows_ - 1) / rows_ * bundle_bytes(); }

    Place at(std::int64_t token) const {
        const std::byte* bundle = data_ + token / rows_ * bundle_bytes();
        const std::int64_t row = token % rows_;
        return {reinterpret_cast<const std::int8_t*>(bundle) + 4 * row,
                reinterpret_cast<const float*>(bundle + q_bytes()) + row,
                reinterpret_cast<const std::int32_t*>(bundle + q_bytes() + group_bytes()) + row};
    }

    /// Bytes that `fill` wants at `rounded`.
    std::int64_t rounded_bytes() const { return rows_ == 1 ? 0 : bundle_rows * rounded_stride(); }

    /// Writes `count` tokens of a bundle, from its begin on: x(i) is the row of token first + i, valid until the next
    /// call. Rows are rounded one after the other, as they lie in memory, and interleaved at the end.
    template <class Row>
    void fill(std::int64_t first, std::int64_t count, const Row& x, std::int8_t* rounded) const {
        const Place to = at(first);
        auto* q = const_cast<std::int8_t*>(to.q);
        if (rows_ == 1) return round(x(0), q, to);
        for (std::int64_t i = 0; i < count; ++i) {
            round(x(i), rounded + i * rounded_stride(), {to.q, to.scales + i, to.sums + i});
        }
        interleave(q, rows_, rounded, rounded_stride(), count, padded() / 4);
    }

    /// Copies the row of a token of `from`, which has the same columns and groups.
    void copy(std::int64_t token, const ByteRows& from, std::int64_t from_token) const {
        const Place to = at(token), source = from.at(from_token);
        auto* q = const_cast<std::int8_t*>(to.q);
        for (std::int64_t c = 0; c < padded(); c += 4) std::memcpy(q + c * rows_, source.q + c * from.rows_, 4);
        for (std::int64_t g = 0; g < groups_; ++g) {
            const_cast<float*>(to.scales)[g * rows_] = source.scales[g * from.rows_];
            const_cast<std::int32_t*>(to.sums)[g * rows_] = source.sums[g * from.rows_];
        }
    }

  private:
    /// Rounds a row to q, [padded columns], and writes its scales and sums at `to`.
    void round(const float* x, std::int8_t* q, const Place& to) const {
        for (std::int64_t g = 0; g < groups_; ++g) {
            const std::int64_t begin = g * group_, n = std::min(group_, columns_ - begin);
            const float most = largest_magnitude(x + begin, n);
            const_cast<float*>(to.scales)[g * rows_] = most / 127.0F;
            const_cast<std::int32_t*>(to.sums)[g * rows_] =
                round_to_bytes(x + begin, n, most > 0.0F ? 127.0F / most : 0.0F, q + begin);
        }
        std::fill(q + columns_, q + padded(), std::int8_t{0});
    }

    /// Rows side by side, apart enough not to drive each other out of the cache.
    std::int64_t rounded_stride() const { return round_up(padded(), 128) + 64; }
    /// To whole blocks of weights, and of vectors: zeros meet there what pads the weights.
    std::int64_t padded() const { return round_up(columns_, 16); }
    std::int64_t q_bytes() const { return round_up(padded() * rows_, 64); }
    std::int64_t group_bytes() const { return round_up(groups_ * rows_ * 4, 64); }
    std::int64_t bundle_bytes() const { return q_bytes() + 2 * group_bytes(); }

    std::byte* data_;
    std::int64_t columns_;
    std::int64_t group_;
    std::int64_t groups_;
    std::int64_t rows_;
};

}  // namespace fermi::cpu::FERMI_ISA
