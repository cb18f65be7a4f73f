// The online softmax (arXiv 2205.14135): from the scores of a block of positions to weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/lane.h"
#include "cpu/simd.h"
#include "cpu/simd/math.h"

namespace fermi::cpu::FERMI_ISA {

inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/// Softmax-weighted sums of values over some keys, for the rows of a tile: Σ e^(s - maximum) v, and Σ e^(s - maximum).
struct Sums {
    float* maximum = nullptr;  // [rows]
    float* total = nullptr;    // [rows]
    float* values = nullptr;   // [rows, dim]

    static std::int64_t floats(std::int64_t rows, std::int64_t dim) { return rows * (2 + dim); }
    Sums() = default;
    Sums(float* memory, std::int64_t rows) : maximum(memory), total(memory + rows), values(memory + 2 * rows) {}

    void clear(std::int64_t rows, std::int64_t dim) const {
        std::fill_n(maximum, rows, minus_infinity);
        std::fill_n(total, rows, 0.0F);
        std::fill_n(values, rows * dim, 0.0F);
    }
};

/// Part of a block of positions: the bounds relative to its start, 0 ≤ first ≤ last ≤ size.
struct Part {
    int first = 0;
    int last = 0;

    Part() = default;
    Part(Range positions, std::int64_t start, int size)
        : first(static_cast<int>(std::clamp<std::int64_t>(positions.begin - start, 0, size))),
          last(static_cast<int>(std::clamp<std::int64_t>(positions.end - start, first, size))) {}
    bool empty() const { return first == last; }
    /// In whole vectors, or in whole multiples of some.
    int first_vector(int vectors = 1) const { return first / (vectors * Vec::width) * (vectors * Vec::width); }
    int end_of_vectors(int vectors = 1) const {
        return (last + vectors * Vec::width - 1) / (vectors * Vec::width) * (vectors * Vec::width);
    }
};

/// scores := cap · tanh(scores / cap), from one vector's begin to another's end (Gemma 2, arXiv 2408.00118).
inline void cap_scores(float* scores, int begin, int end, float cap) {
    const Vec limit = broadcast(cap), inverse = broadcast(1.0F / cap);
    for (int j = begin; j < end; j += Vec::width) store(scores + j, limit * tanh(load(scores + j) * inverse));
}

/// out = values / total; zero for a row that sees nothing.
inline void finish(float* out, float total, const float* values, std::int64_t head_dim) {
    const Vec inverse = broadcast(total > 0.0F || total != total ? 1.0F / total : 0.0F);
    std::int64_t d = 0;
    for (; d + Vec::width <= head_dim; d += Vec::width) store(out + d, load(values + d) * inverse);
    if (d < head_dim) store_partial(out + d, load(values + d) * inverse, static_cast<int>(head_dim - d));
}

}  // namespace fermi::cpu::FERMI_ISA
