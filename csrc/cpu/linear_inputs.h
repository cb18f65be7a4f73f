// The input of a linear op as its products want it: normalized, and as f32, bf16 or int8 rows in scratch memory.
//
// A row is made from its token alone, always in the same way. Few elements are made by every lane for itself, which
// costs less than waiting for each other; many are shared out, and a barrier follows.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/byte_rows.h"
#include "cpu/lane.h"
#include "cpu/norm.h"
#include "cpu/simd.h"
#include "ops.h"

namespace fermi::cpu::FERMI_ISA {

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
    std::int64_t group;   // of the weight
    std::int64_t bundle;  // rows that lie interleaved: see ByteRows. Of other kinds none do

    InputRows(InputKind kind_, std::int64_t columns_, std::int64_t weight_group, std::int64_t tokens)
        : kind(kind_),
          columns(columns_),
          group(weight_group),
          bundle(kind == InputKind::bytes ? rows_of_bundle(tokens) : 1) {}

    /// Bytes of so many rows.
    std::int64_t bytes(std::int64_t tokens) const {
        return kind == InputKind::bytes ? byte_rows(nullptr).bytes(tokens) : tokens * row_bytes();
    }

    /// Bytes from row to row, of kinds other than bytes.
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
                return 0;
        }
        return 0;
    }

    ByteRows byte_rows(std::byte* rows) const { return {rows, columns, group, bundle}; }

    /// Row `row` of the memory at `rows` from x, [columns], which may be that row where it stays f32. Not of bytes.
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
                return;
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
    const InputRows& rows() const { return rows_; }

    /// Bytes of all rows; those in each lane's own memory, whether there or not, come first.
    Scratch scratch() const {
        if (kind() == InputKind::as_it_is) return {};
        const auto rows = static_cast<std::size_t>(rows_.bytes(tokens_));
        return {.shared = apart() ? 0 : rows, .own = (apart() ? rows : 0) + normalized_bytes()};
    }

    /// Makes the rows, this lane's share or all of them, and returns where they are. All lanes call it.
    const std::byte* make(const Lane& lane) const {
        if (kind() == InputKind::as_it_is) return reinterpret_cast<const std::byte*>(x_.data<float>());
        auto* normalized = reinterpret_cast<float*>(lane.own);
        std::byte* rows = apart() ? lane.own + normalized_bytes() : lane.shared;
        const Range tokens = apart() ? Range{0, tokens_} : lane.share(tokens_, rows_.bundle);
        if (kind() == InputKind::bytes) {
            fill_bytes(rows, tokens, normalized);
        } else {
            for (std::int64_t t = tokens.begin; t < tokens.end; ++t) fill(rows, t, normalized);
        }
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

    RowNorm norm() const { return {norm_->norm, norm_->norm_bias, norm_->norm_kind, norm_->epsilon}; }

    std::size_t row_floats() const { return float_bytes(rows_.columns) / sizeof(float); }

    /// A row between its norm and its rounding; of bytes, then the rows of a bundle before they are interleaved.
    std::size_t normalized_bytes() const {
        const bool between = norm_ != nullptr && kind() != InputKind::f32;
        const std::size_t row = between ? float_bytes(rows_.columns) : 0;
        if (kind() != InputKind::bytes) return row;
        return row + round_up_size(static_cast<std::size_t>(rows_.byte_rows(nullptr).rounded_bytes()));
    }

    void fill(std::byte* rows, std::int64_t token, float* normalized) const {
        const float* x = x_.data<float>() + token * x_.stride(0);
        if (norm_ != nullptr) {
            if (kind() == InputKind::f32) normalized = reinterpret_cast<float*>(rows + token * row_bytes());
            normalize(normalized, x, rows_.columns, norm());
            x = normalized;
        }
        rows_.fill(rows, token, x);
    }

    /// Some tokens, a bundle after the other.
    void fill_bytes(std::byte* memory, Range tokens, float* normalized) const {
        const ByteRows rows = rows_.byte_rows(memory);
        auto* rounded = reinterpret_cast<std::int8_t*>(normalized + (norm_ == nullptr ? 0 : row_floats()));
        for (std::int64_t first = tokens.begin; first < tokens.end; first += rows.rows()) {
            const auto row = [&](std::int64_t i) -> const float* {
                const float* x = x_.data<float>() + (first + i) * x_.stride(0);
                if (norm_ == nullptr) return x;
                normalize(normalized, x, rows_.columns, norm());
                return normalized;
            };
            rows.fill(first, std::min(rows.rows(), tokens.end - first), row, rounded);
        }
    }

    const Tensor& x_;
    InputRows rows_;
    const Linear* norm_;
    std::int64_t tokens_;
};

}  // namespace fermi::cpu::FERMI_ISA
