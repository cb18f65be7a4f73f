// Attention of one tile of rows over one block of positions: scores, softmax, weighted values.
//
// Dot says how numbers are multiplied: f32 by what the cache holds, or pairs of bf16.
#pragma once

#include <type_traits>

#include "cpu/attention_layout.h"
#include "cpu/product.h"
#include "cpu/simd.h"
#include "cpu/simd/math.h"

namespace fermi::cpu::FERMI_ISA {

/// scores[r][j .. j + N) = queries[r] · keys[j .. j + N) for M rows.
template <class Dot, int M, int N, class T>
void score_keys(float* scores, const typename Dot::X* queries, const Plan& plan, const Rows<T>& keys, int j) {
    const T* columns[N];
    for (int n = 0; n < N; ++n) columns[n] = keys[j + n];
    Vec sums[M][N];
    set_zero(sums);
    accumulate_tile<Dot>(sums, queries, plan.dim, columns, plan.head_dim, [](std::int64_t) {});
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        float results[N];
        sum_row(sums[m], results);
        std::copy_n(results, N, scores + m * block_keys + j);
    }
}

/// All scores of M rows. The values at the same positions are wanted next.
template <class Dot, int M, class T>
void score_rows(float* scores, const typename Dot::X* queries, const Plan& plan, const Rows<T>& keys,
                const Rows<T>& next) {
    constexpr int N = 4;
    int j = keys.first;
    for (; j + N <= keys.last; j += N) {
        for (int n = 0; n < N; ++n) next.fetch(j + n, plan.head_dim);
        score_keys<Dot, M, N>(scores, queries, plan, keys, j);
    }
    for (; j < keys.last; ++j) {
        next.fetch(j, plan.head_dim);
        score_keys<Dot, M, 1>(scores, queries, plan, keys, j);
    }
}

/// Calls rows<M>(first row) so that `count` rows are covered by groups of at most M.
template <int M, class Rows>
void in_groups(int count, const Rows& rows, int first = 0) {
    for (; first + M <= count; first += M) rows(std::integral_constant<int, M>{}, first);
    if constexpr (M > 1) {
        if (first < count) in_groups<M - 1>(count, rows, first);
    }
}

/// Turns the scores of a block into weights e^(score - maximum), raises the maxima and scales the sums down to them.
/// The total is of the weights as the products see them, rounded. Positions outside of [start, start + block_keys) ∩
/// what a row sees get weight zero.
template <class X>
void soften(const Tile& tile, const Plan& plan, std::int64_t start, float* scores, X* weights, const Sums& sums) {
    float scales[tile_queries] = {};
    float bounds[tile_queries];
    for (int r = 0; r < tile.count(); ++r) {
        float* row = scores + r * block_keys;
        const Range visible = tile.visible(r);
        const std::int64_t first = std::clamp<std::int64_t>(visible.begin - start, 0, block_keys);
        const std::int64_t last = std::clamp<std::int64_t>(visible.end - start, first, block_keys);
        std::fill(row, row + first, minus_infinity);
        std::fill(row + last, row + block_keys, minus_infinity);
        Vec highest = load(row);
        for (int j = Vec::width; j < block_keys; j += Vec::width) highest = maximum(highest, load(row + j));
        const float raised = std::max(sums.maximum[r], largest(highest));
        // No key seen yet: any finite bound makes all weights zero.
        bounds[r] = raised == minus_infinity ? 0.0F : raised;
        scales[r] = sums.maximum[r] - bounds[r];
        sums.maximum[r] = raised;
    }
    for (int r = 0; r < tile.count(); r += Vec::width) store(scales + r, exp(load(scales + r)));
    for (int r = 0; r < tile.count(); ++r) {
        X* row = weights + r * block_keys;
        const Vec bound = broadcast(bounds[r]);
        Vec total = zero();
        for (int j = 0; j < block_keys; j += Vec::width) {
            store(row + j, exp(load(scores + r * block_keys + j) - bound));
            total = total + load(row + j);
        }
        sums.total[r] = sums.total[r] * scales[r] + sum(total);
        if (scales[r] != 1.0F) {
            const Vec scale = broadcast(scales[r]);
            float* values = sums.values + r * plan.dim;
            for (std::int64_t d = 0; d < plan.dim; d += Vec::width) store(values + d, load(values + d) * scale);
        }
    }
}

/// values[r] += Σ weights[r][j] · v[j] for M rows, N vectors of the head from `d` on, in order of j.
template <class Dot, int M, int N, class T>
void weigh_values(float* values, const float* weights, const Plan& plan, std::int64_t d, const Rows<T>& v,
                  const Rows<T>& next) {
    Vec sums[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sums[m][n] = load(values + m * plan.dim + d + n * Vec::width);
    }
    // Only the last vector of a head may be cut short.
    const int partial = static_cast<int>(std::min<std::int64_t>(Vec::width, plan.head_dim - d - (N - 1) * Vec::width));
    for (int j = v.first; j < v.last; ++j) {
        next.fetch(j, plan.head_dim);
        Vec row[N];
#pragma GCC unroll 8
        for (int n = 0; n < N - 1; ++n) row[n] = load(v[j] + d + n * Vec::width);
        const T* end = v[j] + d + (N - 1) * Vec::width;
        row[N - 1] = partial == Vec::width ? load(end) : load_partial(end, partial);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec weight = broadcast(weights[m * block_keys + j]);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = fma(weight, row[n], sums[m][n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) store(values + m * plan.dim + d + n * Vec::width, sums[m][n]);
    }
}

/// The same for pairs of bf16, N pairs of vectors. Two positions make a pair, the first one even; one that no row sees
/// has weight zero, and its memory is not looked at.
template <class Dot, int M, int N>
void weigh_values(float* values, const bf16* weights, const Plan& plan, std::int64_t d, const Rows<bf16>& v,
                  const Rows<bf16>& next) {
    Vec sums[M][2 * N];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; ++n) sums[m][n] = load(values + m * plan.dim + d + n * Vec::width);
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; n += 2) to_interleaved(sums[m][n], sums[m][n + 1]);
    }
    const int partial = static_cast<int>(std::min<std::int64_t>(Dot::step, plan.head_dim - d - (N - 1) * Dot::step));
    const auto load_row = [&](int j, int n) {
        if (j < v.first || j >= v.last) return Dot::none();
        const bf16* from = v[j] + d + n * Dot::step;
        return n < N - 1 || partial == Dot::step ? Dot::load_w(from) : Dot::load_w(from, partial);
    };
    for (int j = v.first & ~1; j < v.last; j += 2) {
        next.fetch(j, plan.head_dim);
        next.fetch(j + 1, plan.head_dim);
        decltype(Dot::none()) pairs[2 * N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            pairs[2 * n] = load_row(j, n);
            pairs[2 * n + 1] = load_row(j + 1, n);
            interleave(pairs[2 * n], pairs[2 * n + 1]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const auto weight = Dot::repeat(weights + m * block_keys + j);
#pragma GCC unroll 8
            for (int n = 0; n < 2 * N; ++n) sums[m][n] = Dot::accumulate(pairs[n], weight, sums[m][n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; n += 2) from_interleaved(sums[m][n], sums[m][n + 1]);
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; ++n) store(values + m * plan.dim + d + n * Vec::width, sums[m][n]);
    }
}

/// All values of M rows. The next block's keys are wanted next.
template <class Dot, int M, class T>
void weigh_rows(float* values, const typename Dot::X* weights, const Plan& plan, const Rows<T>& v,
                const Rows<T>& next) {
    constexpr int N = 4 * Vec::width / Dot::step;  // four vectors of accumulators
    const Rows<T> none;
    std::int64_t d = 0;
    for (; d + N * Dot::step <= plan.dim; d += N * Dot::step) {
        weigh_values<Dot, M, N>(values, weights, plan, d, v, d == 0 ? next : none);
    }
    for (; d < plan.dim; d += Dot::step) weigh_values<Dot, M, 1>(values, weights, plan, d, v, d == 0 ? next : none);
}

/// Adds the block of positions from `start` on to work.span.
template <class Dot, class T>
void attend_block(const Attention& op, const Tile& tile, const Plan& plan, std::int64_t start,
                  const Workspace<typename Dot::X>& work) {
    const Rows<T> keys(op.key_cache, tile, start);
    const Rows<T> values(op.value_cache, tile, start);
    const Rows<T> next_keys(op.key_cache, tile, start + block_keys);
    const Rows<T> none;  // the first rows of the tile fetch for all
    in_groups<tile_rows>(tile.count(), [&](auto m, int r) {
        score_rows<Dot, m()>(work.scores + r * block_keys, work.queries + r * plan.dim, plan, keys,
                             r == 0 ? values : none);
    });
    soften(tile, plan, start, work.scores, work.weights, work.span);
    in_groups<tile_rows>(tile.count(), [&](auto m, int r) {
        weigh_rows<Dot, m()>(work.span.values + r * plan.dim, work.weights + r * block_keys, plan, values,
                             r == 0 ? next_keys : none);
    });
}

}  // namespace fermi::cpu::FERMI_ISA
