// Attention of many rows over one block of positions: what prefill does.
//
// The block's keys and values are laid out once for all rows of the tile so that products need no sums across a vector:
//   keys    [dim / pair, block_keys, pair]   scores of neighbouring positions are neighbours in a vector
//   values  [block_keys / pair, dim, pair]   elements of the head are neighbours in a vector
// A few rows at a time then go from scores to weights to values, their numbers still in the first-level cache.
#pragma once

#include <type_traits>

#include "cpu/attention_softmax.h"
#include "cpu/product.h"

namespace fermi::cpu::FERMI_ISA {

/// How a panel is multiplied: f32, whatever the cache holds.
struct FloatPanel {
    using X = float;
    static constexpr int pair = 1;
    static FERMI_INLINE Vec load_panel(const float* from) { return load(from); }
    static FERMI_INLINE Vec repeat(const float* from) { return broadcast(*from); }
    static FERMI_INLINE Vec accumulate(Vec x, Vec panel, Vec sum) { return fma(x, panel, sum); }
    /// Stores numbers as the products take them; returns what they are then.
    static FERMI_INLINE Vec put(float* to, Vec value) {
        store(to, value);
        return value;
    }
    static FERMI_INLINE void enter(Vec&, Vec&) {}
    static FERMI_INLINE void leave(Vec&, Vec&) {}
    static void lay_values(float* panel, const float* row, const float*, std::int64_t dim) {
        std::copy_n(row, dim, panel);
    }
};

#if defined(FERMI_ISA_AVX512)
/// Pairs of bf16, for caches whose numbers bf16 holds: queries and weights are rounded to it.
struct PairPanel {
    using X = bf16;
    static constexpr int pair = 2;
    static FERMI_INLINE PairVec load_panel(const bf16* from) { return load_pairs(from); }
    static FERMI_INLINE PairVec repeat(const bf16* from) { return repeat_pair(from); }
    static FERMI_INLINE Vec accumulate(PairVec x, PairVec panel, Vec sum) { return dot_pairs(x, panel, sum); }
    static FERMI_INLINE Vec put(bf16* to, Vec value) { return store_rounded(to, value); }
    static FERMI_INLINE void enter(Vec& a, Vec& b) { to_interleaved(a, b); }
    static FERMI_INLINE void leave(Vec& a, Vec& b) { from_interleaved(a, b); }
    static void lay_values(bf16* panel, const bf16* row, const bf16* second, std::int64_t dim) {
        for (std::int64_t d = 0; d < dim; d += 2 * Vec::width) {
            PairVec a = load_pairs(row + d), b = load_pairs(second + d);
            interleave(a, b);
            store_pairs(panel + 2 * d, a);
            store_pairs(panel + 2 * d + 2 * Vec::width, b);
        }
    }
};
#endif

/// Pointers to the vectors of a block as X, [dim] each with zeros beyond head_dim, and where nothing lies.
template <class X, class T>
struct PanelRows {
    std::array<const X*, block_keys> at;

    PanelRows(const Plan& plan, const Positions& positions, const T* vectors, X* room) {
        const X* nothing = room + block_keys * plan.dim;  // zeros
        at.fill(nothing);
        for (int j = positions.part.first; j < positions.part.last; ++j) {
            const T* vector = vectors + positions[j] * plan.head_dim;
            if constexpr (std::is_same_v<X, T>) {
                if (plan.dim == plan.head_dim) {
                    at[static_cast<std::size_t>(j)] = vector;
                    continue;
                }
            }
            X* row = room + j * plan.dim;
            std::int64_t d = 0;
            for (; d + Vec::width <= plan.head_dim; d += Vec::width) store(row + d, load(vector + d));
            if (d < plan.head_dim) {
                store(row + d, load_partial(vector + d, static_cast<int>(plan.head_dim - d)));
                d += Vec::width;
            }
            for (; d < plan.dim; d += Vec::width) store(row + d, zero());
            at[static_cast<std::size_t>(j)] = row;
        }
    }
    const X* operator[](int j) const { return at[static_cast<std::size_t>(j)]; }
};

/// panel[p][j] = rows[j][p], in units of 32 bits: a float or a pair.
template <class X, class T>
void lay_keys(X* panel, const PanelRows<X, T>& rows, std::int64_t dim) {
    const std::int64_t units = dim * static_cast<std::int64_t>(sizeof(X)) / 4;
    auto* to = reinterpret_cast<float*>(panel);
#if defined(FERMI_ISA_AVX512)
    for (int j = 0; j < block_keys; j += Vec::width) {
        for (std::int64_t p = 0; p < units; p += Vec::width) {
            Vec square[Vec::width];
#pragma GCC unroll 16
            for (int i = 0; i < Vec::width; ++i) square[i] = load(reinterpret_cast<const float*>(rows[j + i]) + p);
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < Vec::width; ++i) store(to + (p + i) * block_keys + j, square[i]);
        }
    }
#else
    for (int j = 0; j < block_keys; ++j) {
        const auto* from = reinterpret_cast<const float*>(rows[j]);
        for (std::int64_t p = 0; p < units; ++p) to[p * block_keys + j] = from[p];
    }
#endif
}

/// scores[m][j .. j + N vectors) = queries[m] · keys for panel_rows rows.
template <class Panel, int N>
void score_panel(float* scores, const typename Panel::X* queries, const typename Panel::X* panel, const Plan& plan,
                 int j) {
    constexpr int M = panel_rows, pair = Panel::pair;
    Vec sums[M][N];
    set_zero(sums);
    const typename Panel::X* from = panel + j * pair;
    for (std::int64_t d = 0; d < plan.dim; d += pair, from += block_keys * pair) {
        decltype(Panel::load_panel(from)) column[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) column[n] = Panel::load_panel(from + n * Vec::width * pair);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const auto query = Panel::repeat(queries + m * plan.dim + d);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = Panel::accumulate(query, column[n], sums[m][n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) store(scores + m * block_keys + j + n * Vec::width, sums[m][n]);
    }
}

/// values[m] += Σ weights[m][j] · v[j] for panel_rows rows, N vectors of the head from `d` on, over a part of the
/// block.
template <class Panel, int N>
void weigh_panel(float* values, const typename Panel::X* weights, const typename Panel::X* panel, const Plan& plan,
                 std::int64_t d, const Part& part) {
    constexpr int M = panel_rows, pair = Panel::pair;
    Vec sums[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sums[m][n] = load(values + m * plan.dim + d + n * Vec::width);
#pragma GCC unroll 8
        for (int n = 0; n < N; n += 2) Panel::enter(sums[m][n], sums[m][n + 1]);
    }
    for (int j = part.first / pair * pair; j < part.last; j += pair) {
        const typename Panel::X* from = panel + j * plan.dim + d * pair;
        decltype(Panel::load_panel(from)) row[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) row[n] = Panel::load_panel(from + n * Vec::width * pair);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const auto weight = Panel::repeat(weights + m * block_keys + j);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = Panel::accumulate(weight, row[n], sums[m][n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < N; n += 2) Panel::leave(sums[m][n], sums[m][n + 1]);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) store(values + m * plan.dim + d + n * Vec::width, sums[m][n]);
    }
}

/// Adds the positions [begin, end), begin at the start of a block, to work.span.
template <class Panel, class T>
void attend_by_panels(const Tile& tile, const Plan& plan, const Cache<T>& cache, Range range, const Workspace& work) {
    using X = typename Panel::X;
    constexpr int N = Vec::width == 8 ? 2 : 4;  // with panel_rows rows as many accumulators as there are registers
    auto* room = reinterpret_cast<X*>(work.rows);
    auto* keys = reinterpret_cast<X*>(work.keys);
    auto* values = reinterpret_cast<X*>(work.values);
    auto* weights = reinterpret_cast<X*>(work.weights);
    const auto* queries = reinterpret_cast<const X*>(work.queries);
    std::fill_n(room + block_keys * plan.dim, plan.dim, X{});
    for (std::int64_t start = range.begin; start < range.end; start += block_keys) {
        const Positions positions(tile, plan, start);
        lay_keys(keys, PanelRows<X, T>(plan, positions, cache.keys, room), plan.dim);
        const PanelRows<X, T> rows(plan, positions, cache.values, room);
        for (int j = positions.part.first / Panel::pair * Panel::pair; j < positions.part.last; j += Panel::pair) {
            Panel::lay_values(values + j * plan.dim, rows[j], rows[j + Panel::pair - 1], plan.dim);
        }
        cache.load_scales(positions, work);
        for (int r = 0; r < tile.count(); r += panel_rows) {
            const int count = std::min(panel_rows, tile.count() - r);
            const Part part(tile.keys(r, r + count - 1), start, block_keys);
            if (part.empty()) continue;
            int j = part.first_vector();
            for (; j + N * Vec::width <= part.end_of_vectors(); j += N * Vec::width) {
                score_panel<Panel, N>(work.scores, queries + r * plan.dim, keys, plan, j);
            }
            for (; j < part.end_of_vectors(); j += Vec::width) {
                score_panel<Panel, 1>(work.scores, queries + r * plan.dim, keys, plan, j);
            }
            soften<std::is_integral_v<T>, Panel>(tile, plan, start, part, r, count, work, work.span);
            std::fill_n(weights + count * block_keys, (panel_rows - count) * block_keys, X{});
            float* sums = work.span.values + r * plan.dim;
            std::int64_t d = 0;
            for (; d + N * Vec::width <= plan.dim; d += N * Vec::width) {
                weigh_panel<Panel, N>(sums, weights, values, plan, d, part);
            }
            for (; d < plan.dim; d += 2 * Vec::width) weigh_panel<Panel, 2>(sums, weights, values, plan, d, part);
        }
    }
}

}  // namespace fermi::cpu::FERMI_ISA
