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
    Vec total = zero();  // of whole numbers: exact
    const auto round = [&](std::int64_t i, Vec value) {
        const Vec whole_number =
            minimum(broadcast(127.0F), maximum(broadcast(-127.0F), round_even(value * broadcast(inverse))));
        store_bytes(q + i, whole_number);
        total = total + whole_number;
    };
    std::int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) round(i, load(x + i));
    if (i < n) round(i, load_partial(x + i, static_cast<int>(n - i)));
    return static_cast<std::int32_t>(sum(total));
}

/// Columns that are rounded together, before their rows are interleaved.
inline constexpr std::int64_t rounded_columns = 128;

/// to[step][row] = from[row][step]: four columns of each of `count` rows, where a step of `to` has `rows` of them.
inline void interleave(std::int8_t* to, std::int64_t rows, const std::int8_t* from, std::int64_t count,
                       std::int64_t steps) {
    for (std::int64_t step = 0; step < steps; ++step) {
        for (std::int64_t i = 0; i < count; ++i) {
            std::memcpy(to + (step * rows + i) * 4, from + i * rounded_columns + step * 4, 4);
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

    /// The columns of a group.
    Range columns(std::int64_t group) const { return {group * group_, std::min(columns_, (group + 1) * group_)}; }

    /// Writes a group of some tokens of a bundle, from `first` on: x[i] are its columns of token first + i, which
    /// become scale · q. All scales are found before anything is rounded, so that they need not wait for each other.
    void fill(std::int64_t first, std::int64_t count, std::int64_t group, const float* const* x) const {
        const Place to = at(first);
        const Range range = columns(group);
        auto* q = const_cast<std::int8_t*>(to.q) + range.begin * rows_;
        auto* scales = const_cast<float*>(to.scales) + group * rows_;
        auto* sums = const_cast<std::int32_t*>(to.sums) + group * rows_;
        float inverses[bundle_rows];
        for (std::int64_t i = 0; i < count; ++i) {
            const float most = largest_magnitude(x[i], range.size());
            inverses[i] = most > 0.0F ? 127.0F / most : 0.0F;
            scales[i] = most / 127.0F;
        }
        if (rows_ == 1) {
            sums[0] = round_to_bytes(x[0], range.size(), inverses[0], q);
            if (range.end == columns_) std::fill(q + range.size(), q + padded() - range.begin, std::int8_t{0});
            return;
        }
        std::fill_n(sums, count, 0);
        std::int8_t rounded[bundle_rows * rounded_columns];
        for (std::int64_t c = range.begin; c < range.end; c += rounded_columns) {
            const std::int64_t n = std::min(rounded_columns, range.end - c);
            for (std::int64_t i = 0; i < count; ++i) {
                sums[i] += round_to_bytes(x[i] + (c - range.begin), n, inverses[i], rounded + i * rounded_columns);
            }
            std::int64_t steps = (n + 3) / 4;
            if (c + n == columns_) {  // zeros meet what pads the weights
                steps = (padded() - c) / 4;
                for (std::int64_t i = 0; i < count; ++i) {
                    std::int8_t* row = rounded + i * rounded_columns;
                    std::fill(row + n, row + 4 * steps, std::int8_t{0});
                }
            }
            if (count == bundle_rows && rows_ == bundle_rows) {
                interleave(q + (c - range.begin) * rows_, bundle_rows, rounded, bundle_rows, steps);
            } else {
                interleave(q + (c - range.begin) * rows_, rows_, rounded, count, steps);
            }
        }
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
