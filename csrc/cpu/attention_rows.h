// Attention of a few rows over a span of positions, in f32 and straight from the cache: what decode does.
//
// Memory decides: keys, then values, are read block by block, all heads of a block in turn, which is the order in which
// they lie; the heads that share a KV head share each load. Softmax stands between, over the whole span.
//
// Every score has an accumulator of its own that walks along the head, and values are added in order of position, so a
// row's bits do not depend on the rows, heads and blocks it is computed with.
#pragma once

#include <type_traits>

#include "cpu/attention_layout.h"
#include "cpu/product.h"
#include "cpu/simd/math.h"

namespace fermi::cpu::FERMI_ISA {

/// Rows that are computed together: no more than sum_scores takes.
inline constexpr int group_rows = tile_rows < 4 ? tile_rows : 4;

/// Positions [first, last) of a span, relative to its start, that lie in one block; `row`: of the first, in head 0.
struct Run {
    int first;
    int last;
    std::int64_t row;
};

/// The blocks of a span, as far as the tile sees them.
struct Runs {
    std::array<Run, row_span> at;
    int count = 0;
    Part part;

    Runs(const RowTile& tile, const Plan& plan, std::int64_t start) : part(tile.keys(), start, row_span) {
        std::int64_t block = (start + part.first) / plan.block_size;
        std::int64_t offset = (start + part.first) % plan.block_size;
        for (int j = part.first; j < part.last; ++block, offset = 0) {
            const std::int64_t index = tile.sequence.blocks[block * tile.sequence.blocks_stride];
            const int last = static_cast<int>(std::min<std::int64_t>(part.last, j + plan.block_size - offset));
            at[static_cast<std::size_t>(count++)] = {j, last, index * plan.kv_heads * plan.block_size + offset};
            j = last;
        }
    }
};

/// Calls rows<M>(first row) so that `count` rows are covered by groups of at most M.
template <int M, class Rows>
FERMI_INLINE void in_groups(int count, const Rows& rows, int first = 0) {
    for (; first + M <= count; first += M) rows(std::integral_constant<int, M>{}, first);
    if constexpr (M > 1) {
        if (first < count) in_groups<M - 1>(count, rows, first);
    }
}

/// scores[m][n] = queries[m] · keys[n] of M rows and N positions.
template <int M, int N, class T>
FERMI_INLINE void score_keys(float* scores, const float* queries, const Plan& plan, const T* keys) {
    constexpr int step = 2 * Vec::width;
    Vec sums[M][N];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) sums[m][n] = zero();
    }
    const auto advance = [&](std::int64_t d, const auto& load_key) {
        Two query[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            query[m] = {load(queries + m * plan.dim + d), load(queries + m * plan.dim + d + Vec::width)};
        }
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const Two key = load_key(keys + n * plan.head_dim + d);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) sums[m][n] = fma(query[m].a, key.a, sums[m][n]);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) sums[m][n] = fma(query[m].b, key.b, sums[m][n]);
        }
    };
    std::int64_t d = 0;
    for (; d + step <= plan.head_dim; d += step) advance(d, [](const T* key) { return load_two(key); });
    if (d < plan.head_dim) {
        const int rest = static_cast<int>(plan.head_dim - d);
        advance(d, [rest](const T* key) { return load_two_partial(key, rest); });
    }
    sum_scores(sums, scores, row_span);
}

/// Scores of M rows against the keys of one head of a run.
template <int M, class T>
void score_run(float* scores, const float* queries, const Plan& plan, const T* keys, int count) {
    constexpr int N = score_columns(M);
    int j = 0;
    for (; j + N <= count; j += N) score_keys<M, N>(scores + j, queries, plan, keys + j * plan.head_dim);
    if constexpr (N > 4) {
        for (; j + 4 <= count; j += 4) score_keys<M, 4>(scores + j, queries, plan, keys + j * plan.head_dim);
    }
    for (; j < count; ++j) score_keys<M, 1>(scores + j, queries, plan, keys + j * plan.head_dim);
}

/// values[m] += Σ weights[m][j] · v[j] of M rows and one head of a run, N pairs of vectors of the head from `d` on, in
/// order of j. Values are in the order of Two.
template <int M, int N, class T>
FERMI_INLINE void weigh_values(float* values, const float* weights, const Plan& plan, const T* v, std::int64_t d,
                               int count) {
    constexpr int step = 2 * Vec::width;
    Vec sums[M][2 * N];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; ++n) sums[m][n] = load(values + m * plan.dim + d + n * Vec::width);
    }
    const auto add = [&](const auto& load_last) {
        const T* from = v + d;
        for (int j = 0; j < count; ++j, from += plan.head_dim) {
            Two row[N];
#pragma GCC unroll 8
            for (int n = 0; n < N - 1; ++n) row[n] = load_two(from + n * step);
            row[N - 1] = load_last(from + (N - 1) * step);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const Vec weight = broadcast(weights[m * row_span + j]);
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
        add([](const T* from) { return load_two(from); });
    } else {
        add([rest](const T* from) { return load_two_partial(from, static_cast<int>(rest)); });
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; ++n) store(values + m * plan.dim + d + n * Vec::width, sums[m][n]);
    }
}

template <int M, class T>
void weigh_run(float* values, const float* weights, const Plan& plan, const T* v, int count) {
    constexpr int N = M <= 2 ? 4 : 2, step = 2 * Vec::width;
    std::int64_t d = 0;
    for (; d + N * step <= plan.dim; d += N * step) weigh_values<M, N>(values, weights, plan, v, d, count);
    for (; d < plan.dim; d += step) weigh_values<M, 1>(values, weights, plan, v, d, count);
}

/// numbers[j] *= scales[j]
inline void multiply(float* numbers, const float* scales, int count) {
    int j = 0;
    for (; j + Vec::width <= count; j += Vec::width) store(numbers + j, load(numbers + j) * load(scales + j));
    for (; j < count; ++j) numbers[j] *= scales[j];
}

/// Turns a row's scores over the positions of a span into weights e^(score - maximum); positions that it does not see
/// get zero. Sets maximum and total.
inline void soften_row(float* scores, const Part& part, const Part& visible, float soft_cap, float& highest,
                       float& total) {
    const int begin = part.first_vector(), end = part.end_of_vectors();
    if (soft_cap != 0.0F) cap_scores(scores, begin, end, soft_cap);
    std::fill(scores + begin, scores + std::max(begin, visible.first), minus_infinity);
    std::fill(scores + std::max(begin, visible.last), scores + end, minus_infinity);
    Vec most = broadcast(minus_infinity);
    for (int j = begin; j < end; j += Vec::width) most = maximum(most, load(scores + j));
    highest = largest(most);
    // Where it sees none any finite bound makes all weights zero.
    const Vec bound = broadcast(highest == minus_infinity ? 0.0F : highest);
    Vec sums = zero();
    for (int j = begin; j < end; j += Vec::width) {
        const Vec weight = exp(load(scores + j) - bound);
        store(scores + j, weight);
        sums = sums + weight;
    }
    total = sum(sums);
}

/// The sums of a tile over a span.
template <class T>
void attend_by_rows(const RowTile& tile, const Plan& plan, const Cache<T>& cache, std::int64_t start, float soft_cap,
                    const Workspace& work, const Sums& sums) {
    const Runs runs(tile, plan, start);
    const int heads = tile.heads(), rows = tile.rows_per_head();
    const std::int64_t head_rows = plan.block_size, pieces = std::int64_t{runs.count} * heads;
    const auto run_of = [&](std::int64_t piece) { return runs.at[static_cast<std::size_t>(piece / heads)]; };
    const auto row_of = [&](std::int64_t piece) {
        return run_of(piece).row + (tile.kv_heads.begin + piece % heads) * head_rows;
    };
    // Asks for what will be read some pieces later: keys, then values.
    const auto fetch = [&](std::int64_t piece) {
        if (piece >= 2 * pieces) return;
        const bool is_key = piece < pieces;
        const std::int64_t index = is_key ? piece : piece - pieces, row = row_of(index);
        const Run run = run_of(index);
        const auto* from = reinterpret_cast<const char*>(is_key ? cache.key(row) : cache.value(row));
        const std::int64_t bytes = (run.last - run.first) * plan.head_dim * static_cast<std::int64_t>(sizeof(T));
        for (std::int64_t i = 0; i < bytes; i += 64) prefetch_far(from + i);
        if (cache.key_scales != nullptr) prefetch_far((is_key ? cache.key_scales : cache.value_scales) + row);
    };
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        fetch(piece + pieces_ahead);
        const Run run = run_of(piece);
        const std::int64_t row = row_of(piece), r0 = piece % heads * rows;
        const int count = run.last - run.first;
        float* scores = work.scores + r0 * row_span + run.first;
        in_groups<group_rows>(rows, [&](auto m, int r) {
            score_run<m()>(scores + r * row_span, work.queries + (r0 + r) * plan.dim, plan, cache.key(row), count);
        });
        if constexpr (std::is_integral_v<T>) {
            for (int r = 0; r < rows; ++r) multiply(scores + r * row_span, cache.key_scales + row, count);
        }
    }
    for (int r = 0; r < tile.count(); ++r) {
        soften_row(work.scores + r * row_span, runs.part, Part(tile.visible(r), start, row_span), soft_cap,
                   sums.maximum[r], sums.total[r]);
    }
    std::fill_n(sums.values, tile.count() * plan.dim, 0.0F);
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        fetch(pieces + piece + pieces_ahead);
        const Run run = run_of(piece);
        const std::int64_t row = row_of(piece), r0 = piece % heads * rows;
        const int count = run.last - run.first;
        float* weights = work.scores + r0 * row_span + run.first;
        if constexpr (std::is_integral_v<T>) {
            for (int r = 0; r < rows; ++r) multiply(weights + r * row_span, cache.value_scales + row, count);
        }
        in_groups<group_rows>(rows, [&](auto m, int r) {
            weigh_run<m()>(sums.values + (r0 + r) * plan.dim, weights + r * row_span, plan, cache.value(row), count);
        });
    }
    for (std::int64_t d = 0; d < tile.count() * plan.dim; d += 2 * Vec::width) {
        float* values = sums.values + d;
        Vec a = load(values), b = load(values + Vec::width);
        from_two(a, b, T{});
        store(values, a);
        store(values + Vec::width, b);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
