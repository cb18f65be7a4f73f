// Attention of a few rows over one block of positions, in f32 and straight from the cache: what decode does.
//
// Every score has an accumulator of its own that walks along the head, and values are added in order of position, so a
// row's bits do not depend on the tile it is in. The heads that share a KV head share each load from the cache. While
// keys are multiplied the values at the same positions are fetched, and with the values the keys of the next block.
#pragma once

#include <type_traits>

#include "cpu/attention_softmax.h"
#include "cpu/product.h"

namespace fermi::cpu::FERMI_ISA {

/// Calls rows<M>(first row) so that `count` rows are covered by groups of at most M.
template <int M, class Rows>
void in_groups(int count, const Rows& rows, int first = 0) {
    for (; first + M <= count; first += M) rows(std::integral_constant<int, M>{}, first);
    if constexpr (M > 1) {
        if (first < count) in_groups<M - 1>(count, rows, first);
    }
}

/// scores[m][n] = queries[m] · keys[n] of M rows and N positions.
template <int M, int N, class T>
FERMI_INLINE void score_keys(float* scores, const float* queries, const Plan& plan, const T* const (&keys)[N]) {
    constexpr int step = 2 * Vec::width;
    Vec sums[M][N];
    set_zero(sums);
    const auto advance = [&](std::int64_t d, const auto& load_key) {
        Two column[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) column[n] = load_key(keys[n] + d);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec first = load(queries + m * plan.dim + d), second = load(queries + m * plan.dim + d + Vec::width);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = fma(first, column[n].a, sums[m][n]);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = fma(second, column[n].b, sums[m][n]);
        }
    };
    std::int64_t d = 0;
    for (; d + step <= plan.head_dim; d += step) advance(d, [](const T* key) { return load_two(key); });
    if (d < plan.head_dim) {
        const int rest = static_cast<int>(plan.head_dim - d);
        advance(d, [rest](const T* key) { return load_two_partial(key, rest); });
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        float results[N];
        sum_row(sums[m], results);
        std::copy_n(results, N, scores + m * block_keys);
    }
}

/// All scores of M rows from `r` on.
template <int M, class T>
void score_rows(const Plan& plan, const Cache<T>& cache, const Positions& positions, int r, const Workspace& work) {
    constexpr int N = 4;
    const float* queries = work.queries + r * plan.dim;
    float* scores = work.scores + r * block_keys;
    const auto score = [&]<int count>(std::integral_constant<int, count>, int j) {
        const T* keys[count];
        for (int n = 0; n < count; ++n) {
            keys[n] = cache.key(positions[j + n]);
            if (r == 0) cache.fetch(cache.value(positions[j + n]));
        }
        score_keys<M, count>(scores + j, queries, plan, keys);
    };
    int j = positions.part.first;
    for (; j + N <= positions.part.last; j += N) score(std::integral_constant<int, N>{}, j);
    for (; j < positions.part.last; ++j) score(std::integral_constant<int, 1>{}, j);
}

/// values[m] += Σ weights[m][j] · v[j] for M rows, N pairs of vectors of the head from `d` on, in order of j.
template <int M, int N, class T>
void weigh_values(float* values, const float* weights, const Plan& plan, const Cache<T>& cache, std::int64_t d,
                  const Positions& positions, const Positions* next) {
    constexpr int step = 2 * Vec::width;
    Vec sums[M][2 * N];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; ++n) sums[m][n] = load(values + m * plan.dim + d + n * Vec::width);
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; n += 2) to_two(sums[m][n], sums[m][n + 1], T{});
    }
    const auto add = [&](const auto& load_last) {
        for (int j = positions.part.first; j < positions.part.last; ++j) {
            if (next != nullptr && next->has(j)) cache.fetch(cache.key((*next)[j]));
            const T* v = cache.value(positions[j]) + d;
            Two row[N];
#pragma GCC unroll 8
            for (int n = 0; n < N - 1; ++n) row[n] = load_two(v + n * step);
            row[N - 1] = load_last(v + (N - 1) * step);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const Vec weight = broadcast(weights[m * block_keys + j]);
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) {
                    sums[m][2 * n] = fma(weight, row[n].a, sums[m][2 * n]);
                    sums[m][2 * n + 1] = fma(weight, row[n].b, sums[m][2 * n + 1]);
                }
            }
        }
    };
    const std::int64_t rest = plan.head_dim - d - (N - 1) * step;
    if (rest >= step) {
        add([](const T* v) { return load_two(v); });
    } else {
        add([rest](const T* v) { return load_two_partial(v, static_cast<int>(rest)); });
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; n += 2) from_two(sums[m][n], sums[m][n + 1], T{});
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; ++n) store(values + m * plan.dim + d + n * Vec::width, sums[m][n]);
    }
}

/// All values of M rows from `r` on.
template <int M, class T>
void weigh_rows(const Plan& plan, const Cache<T>& cache, const Positions& positions, const Positions* next, int r,
                const Workspace& work) {
    constexpr int N = 2, step = 2 * Vec::width;
    float* values = work.span.values + r * plan.dim;
    const float* weights = work.weights + r * block_keys;
    std::int64_t d = 0;
    for (; d + N * step <= plan.dim; d += N * step) {
        weigh_values<M, N>(values, weights, plan, cache, d, positions, r == 0 && d == 0 ? next : nullptr);
    }
    if (d < plan.dim) weigh_values<M, 1>(values, weights, plan, cache, d, positions, r == 0 && d == 0 ? next : nullptr);
}

/// Adds the positions [begin, end), begin at the start of a block, to work.span.
template <class T>
void attend_by_rows(const Tile& tile, const Plan& plan, const Cache<T>& cache, Range range, const Workspace& work) {
    std::array<Positions, 2> blocks{Positions(tile, plan, range.begin), Positions(tile, plan, range.end)};
    int now = 0;
    for (std::int64_t start = range.begin; start < range.end; start += block_keys, now = 1 - now) {
        const Positions& here = blocks[static_cast<std::size_t>(now)];
        Positions& next = blocks[static_cast<std::size_t>(1 - now)];
        const bool more = start + block_keys < range.end;
        if (more) {
            next = Positions(tile, plan, start + block_keys);
            cache.fetch_scales(next);
        }
        cache.load_scales(here, work);
        in_groups<tile_rows>(tile.count(), [&](auto m, int r) { score_rows<m()>(plan, cache, here, r, work); });
        soften<std::is_integral_v<T>, float>(tile, plan, start, here.part, 0, tile.count(), work, work.span);
        in_groups<tile_rows>(
            tile.count(), [&](auto m, int r) { weigh_rows<m()>(plan, cache, here, more ? &next : nullptr, r, work); });
    }
}

}  // namespace fermi::cpu::FERMI_ISA
