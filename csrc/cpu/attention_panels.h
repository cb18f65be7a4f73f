// Attention of many rows of queries over one block of positions at a time: what prefill and encoders do.
//
// A block's keys and values are laid out once for all rows of a tile so that products need no sums across a vector, and
// so that what meets row after row lies together in the first-level cache:
//   keys    [block_keys / panel_keys, dim / pair, panel_keys, pair]   scores of neighbouring positions are neighbours
//   values  [dim / panel_keys, block_keys / pair, panel_keys, pair]   elements of the head are neighbours
// Some rows at a time then go from scores to weights to values: few enough for their scores to stay near, enough for a
// panel to be worth its way from the second-level cache.
#pragma once

#include <array>
#include <type_traits>
#include <utility>

#include "cpu/attention_softmax.h"
#include "cpu/product.h"

namespace fermi::cpu::FERMI_ISA {

inline constexpr int block_keys = 128;                     // positions of a block
inline constexpr int panel_tile = 384;                     // rows of a tile, at most: what the second-level cache holds
inline constexpr int panel_rows = tile_rows >= 3 ? 6 : 2;  // of them, those that are in registers at a time
inline constexpr int panel_vectors = Vec::width == 8 ? 2 : 4;  // and what of a panel is there beside them
inline constexpr int panel_keys = panel_vectors * Vec::width;  // positions, or elements of a head, of a panel
inline constexpr float slack = 8.0F;  // by which scores may exceed a bound before sums are scaled down to a new one
inline constexpr int pass_rows = 48;  // rows whose scores exist at the same time
static_assert(block_keys % panel_keys == 0 && panel_tile % pass_rows == 0 && pass_rows % panel_rows == 0);

/// In the body of a loop over vectors: GCC does not vectorize it a second time, across its steps, as it would where a
/// vector is an array of floats.
FERMI_INLINE void keep_loop() {
    __asm__ volatile("");
}

/// How a panel is multiplied: f32, whatever keys and values are.
struct FloatPanel {
    using X = float;
    static constexpr int pair = 1;
    static FERMI_INLINE Vec load_panel(const float* from) { return load(from); }
    static FERMI_INLINE Vec repeat(const float* from) { return broadcast(*from); }
    static FERMI_INLINE Vec accumulate(Vec x, Vec panel, Vec sum) { return fma(x, panel, sum); }
    /// Stores numbers as the products take them.
    static FERMI_INLINE void put(float* to, Vec value) { store(to, value); }
    /// Stores two vectors of weights; returns `total` with what they are then added to it.
    static FERMI_INLINE Vec put_weights(float* to, Vec a, Vec b, Vec total) {
        store(to, a);
        store(to + Vec::width, b);
        return total + a + b;
    }
    /// e^(score - bound), score ≤ bound, to 2e-7 of the largest weight; 0 for scores of -∞.
    static FERMI_INLINE Vec weight(Vec score, Vec bound) {
        const Vec x = maximum(broadcast(-105.0F), score - bound) * broadcast(0x1.715476p+0F);  // / ln 2
        const Vec n = round_even(x), r = x - n;
        // 2ʳ for |r| ≤ 1/2, to 9e-8
        Vec p = broadcast(1.3264727e-3F);
        p = fma(p, r, broadcast(9.671513e-3F));
        p = fma(p, r, broadcast(5.5507336e-2F));
        p = fma(p, r, broadcast(2.4022242e-1F));
        p = fma(p, r, broadcast(6.9314700e-1F));
        return times_power_of_two(fma(p, r, broadcast(1.0F)), n);
    }
    static FERMI_INLINE void to_order(Vec&, Vec&) {}
    static void lay_values(float* panel, const float* row, const float*) {
        store(panel, load(row)), store(panel + Vec::width, load(row + Vec::width));
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
    static FERMI_INLINE void put(bf16* to, Vec value) { store_rounded(to, value); }
    static FERMI_INLINE Vec put_weights(bf16* to, Vec a, Vec b, Vec total) {
        const PairVec pairs = round_pairs(a, b);
        store_pairs(to, pairs);
        return dot_pairs(pairs, pairs_of_ones(), total);
    }
    /// To 2⁻¹³, sixteen times what rounding to bf16 leaves.
    static FERMI_INLINE Vec weight(Vec score, Vec bound) {
        const Vec inverse = broadcast(0x1.715476p+0F);  // 1 / ln 2
        const Vec x = maximum(broadcast(-160.0F), fma(score, inverse, bound * (zero() - inverse)));
        const Vec n = round_even(x), r = x - n;
        Vec p = broadcast(5.5171669e-2F);
        p = fma(p, r, broadcast(2.4261113e-1F));
        p = fma(p, r, broadcast(6.9326097e-1F));
        return times_power_of_two(fma(p, r, broadcast(9.9992806e-1F)), n);
    }
    static FERMI_INLINE void to_order(Vec& a, Vec& b) { from_interleaved(a, b); }
    static FERMI_INLINE void lay_values(bf16* panel, const bf16* row, const bf16* second) {
        PairVec a = load_pairs(row), b = load_pairs(second);
        interleave(a, b);
        store_pairs(panel, a);
        store_pairs(panel + 2 * Vec::width, b);
    }
};
#endif

/// What panels need beside their rows' sums. Where products are of bf16 pairs, arrays of X hold bf16.
struct PanelMemory {
    float* queries = nullptr;  // X [panel_tile, dim], scaled, zeros beyond head_dim
    float* keys = nullptr;     // X [dim, block_keys] in the order above
    float* values = nullptr;   // X [block_keys, dim] in the order above
    float* rows = nullptr;     // X [block_keys + 1, dim]
    float* scores = nullptr;   // [pass_rows, block_keys]
    float* weights = nullptr;  // X [pass_rows, block_keys]

    static std::int64_t floats(std::int64_t dim) {
        return (panel_tile + 3 * block_keys + 1) * dim + 2 * pass_rows * block_keys;
    }
    PanelMemory() = default;
    PanelMemory(float* memory, std::int64_t dim) {
        const auto take = [&](std::int64_t count) { return std::exchange(memory, memory + count); };
        queries = take(panel_tile * dim);
        keys = take(block_keys * dim);
        values = take(block_keys * dim);
        rows = take((block_keys + 1) * dim);
        scores = take(pass_rows * block_keys);
        weights = take(pass_rows * block_keys);
    }
};

/// Many rows of queries against blocks of keys and values.
template <class Panel>
class Panels {
  public:
    using X = typename Panel::X;

    Panels(const PanelMemory& memory, std::int64_t head_dim, std::int64_t dim)
        : head_dim_(head_dim),
          dim_(dim),
          queries_(reinterpret_cast<X*>(memory.queries)),
          keys_(reinterpret_cast<X*>(memory.keys)),
          values_(reinterpret_cast<X*>(memory.values)),
          room_(reinterpret_cast<X*>(memory.rows)),
          scores_(memory.scores),
          weights_(reinterpret_cast<X*>(memory.weights)) {}

    /// Row r of `count` is scale · query(r), [head_dim] floats; zeros fill the last registers.
    template <class Query>
    void load_queries(int count, float scale, const Query& query) const {
        const Vec factor = broadcast(scale);
        for (int r = 0; r < count; ++r) {
            const float* from = query(r);
            X* to = queries_ + r * dim_;
            std::int64_t d = 0;
            for (; d + Vec::width <= head_dim_; d += Vec::width) Panel::put(to + d, load(from + d) * factor);
            if (d < head_dim_) {
                Panel::put(to + d, load_partial(from + d, static_cast<int>(head_dim_ - d)) * factor);
                d += Vec::width;
            }
            for (; d < dim_; d += Vec::width) Panel::put(to + d, zero());
        }
        std::fill_n(queries_ + count * dim_, (round_up(count, panel_rows) - count) * dim_, X{});
    }

    /// Lays out the part of a block: key(j) and value(j) are [head_dim] each.
    template <class Key, class Value>
    void load_block(const Part& part, const Key& key, const Value& value) const {
        std::fill_n(room_ + block_keys * dim_, dim_, X{});
        lay_keys(part, Rows(*this, part, key));
        const Rows rows(*this, part, value);
        for (int j = part.first / Panel::pair * Panel::pair; j < part.last; j += Panel::pair) {
            for (std::int64_t d = 0; d < dim_; d += 2 * Vec::width) {
                const std::int64_t begin = d / panel_keys * panel_keys;
                const std::int64_t width = std::min<std::int64_t>(panel_keys, dim_ - begin);
                Panel::lay_values(values_ + begin * block_keys + j * width + (d - begin) * Panel::pair, rows[j] + d,
                                  rows[j + Panel::pair - 1] + d);
            }
        }
    }

    /// Adds the block, which starts at position `start`, to the sums of `count` rows. visible(r): what row r sees,
    /// which neither begins nor ends before what row r - 1 sees. adjust(scores, r, begin, end) makes scores of
    /// products, from one vector's begin to another's end. Where `scales` are not null, a value counts as much as they
    /// say. ahead(r) is called before every panel_rows rows: the place to prefetch.
    ///
    /// Positions that a row does not see get weight zero, and add exact zeros; so a row's bits do not depend on the
    /// rows beside it. The values of sums are in the order of `products`, see `order`.
    template <class Visible, class Adjust, class Ahead>
    void attend(const Sums& sums, int count, std::int64_t start, const Visible& visible, const Adjust& adjust,
                const float* scales, const Ahead& ahead) const {
        for (int first = 0; first < count; first += pass_rows) {
            pass(sums, first, std::min(pass_rows, count - first), start, visible, adjust, scales, ahead);
        }
    }

    /// The values of `count` rows in the order of the head's elements.
    void order(const Sums& sums, int count) const {
        if constexpr (Panel::pair == 2) {
            for (float *values = sums.values, *end = values + count * dim_; values < end; values += 2 * Vec::width) {
                Vec a = load(values), b = load(values + Vec::width);
                Panel::to_order(a, b);
                store(values, a);
                store(values + Vec::width, b);
            }
        }
    }

  private:
    /// Pointers to the vectors of a block as X, [dim] each with zeros beyond head_dim, and where nothing lies.
    struct Rows {
        std::array<const X*, block_keys> at;

        template <class Vector>
        Rows(const Panels& panels, const Part& part, const Vector& vector) {
            using T = std::remove_cvref_t<decltype(*vector(0))>;
            const std::int64_t dim = panels.dim_, head_dim = panels.head_dim_;
            at.fill(panels.room_ + block_keys * dim);  // zeros
            for (int j = part.first; j < part.last; ++j) {
                const T* from = vector(j);
                if constexpr (std::is_same_v<X, T>) {
                    if (dim == head_dim) {
                        at[static_cast<std::size_t>(j)] = from;
                        continue;
                    }
                }
                X* row = panels.room_ + j * dim;
                std::int64_t d = 0;
                for (; d + Vec::width <= head_dim; d += Vec::width) Panel::put(row + d, load(from + d));
                if (d < head_dim) {
                    Panel::put(row + d, load_partial(from + d, static_cast<int>(head_dim - d)));
                    d += Vec::width;
                }
                for (; d < dim; d += Vec::width) Panel::put(row + d, zero());
                at[static_cast<std::size_t>(j)] = row;
            }
        }
        const X* operator[](int j) const { return at[static_cast<std::size_t>(j)]; }
    };

    /// Whole vectors of positions, in units of 32 bits: a float or a pair.
    void lay_keys(const Part& part, const Rows& rows) const {
        const std::int64_t units = dim_ / Panel::pair;
        auto* to = reinterpret_cast<float*>(keys_);
        for (int j = part.first_vector(); j < part.end_of_vectors(); j += Vec::width) {
            float* panel = to + j / panel_keys * panel_keys * units + j % panel_keys;
#if defined(FERMI_ISA_AVX512)
            for (std::int64_t p = 0; p < units; p += Vec::width) {
                Vec square[Vec::width];
#pragma GCC unroll 16
                for (int i = 0; i < Vec::width; ++i) square[i] = load(reinterpret_cast<const float*>(rows[j + i]) + p);
                transpose(square);
#pragma GCC unroll 16
                for (int i = 0; i < Vec::width; ++i) store(panel + (p + i) * panel_keys, square[i]);
            }
#else
            for (int i = 0; i < Vec::width; ++i) {
                const auto* from = reinterpret_cast<const float*>(rows[j + i]);
                for (std::int64_t p = 0; p < units; ++p) panel[p * panel_keys + i] = from[p];
            }
#endif
        }
    }

    template <class Visible, class Adjust, class Ahead>
    void pass(const Sums& sums, int first, int count, std::int64_t start, const Visible& visible, const Adjust& adjust,
              const float* scales, const Ahead& ahead) const {
        constexpr int groups = pass_rows / panel_rows;
        Part seen[pass_rows];  // by each row
        for (int r = 0; r < count; ++r) seen[r] = Part(visible(first + r), start, block_keys);
        Part parts[groups];  // by any row of a group
        int used = 0;
        for (int r = 0; r < count; r += panel_rows, ++used) {
            parts[used].first = seen[r].first;
            parts[used].last = std::max(seen[r].first, seen[std::min(r + panel_rows, count) - 1].last);
        }
        for (int panel = 0; panel < block_keys; panel += panel_keys) {
            for (int g = 0; g < used; ++g) {
                const int begin = std::max(panel, parts[g].first_vector());
                const int end = std::min(panel + panel_keys, parts[g].end_of_vectors());
                if (parts[g].empty() || begin >= end) continue;
                score<panel_vectors>((end - begin) / Vec::width, scores_ + g * panel_rows * block_keys + begin,
                                     queries_ + (first + g * panel_rows) * dim_,
                                     keys_ + panel * dim_ + (begin - panel) * Panel::pair);
            }
        }
        for (int g = 0; g < used; ++g) {
            ahead(first + g * panel_rows);
            if (parts[g].empty()) continue;
            const int r = g * panel_rows, rows = std::min(panel_rows, count - r);
            soften(sums, first + r, r, rows, parts[g], seen, adjust, scales);
            std::fill_n(weights_ + (r + rows) * block_keys, (panel_rows - rows) * block_keys, X{});
        }
        for (std::int64_t d = 0; d < dim_; d += panel_keys) {
            const std::int64_t width = std::min<std::int64_t>(panel_keys, dim_ - d);
            for (int g = 0; g < used; ++g) {
                if (parts[g].empty()) continue;
                weigh<panel_vectors>(static_cast<int>(width) / Vec::width,
                                     sums.values + (first + g * panel_rows) * dim_ + d,
                                     weights_ + g * panel_rows * block_keys, values_ + d * block_keys, parts[g]);
            }
        }
    }

    /// Calls score_panel for `vectors` ≤ N vectors.
    template <int N>
    void score(int vectors, float* scores, const X* queries, const X* panel) const {
        if (vectors == N) return score_panel<N>(scores, queries, panel);
        if constexpr (N > 1) score<N - 1>(vectors, scores, queries, panel);
    }

    /// scores[m][n] = queries[m] · keys[n] of panel_rows rows and N vectors of positions.
    template <int N>
    void score_panel(float* scores, const X* queries, const X* panel) const {
        constexpr int M = panel_rows, pair = Panel::pair;
        Vec sums[M][N];
        set_zero(sums);
        for (std::int64_t d = 0; d < dim_; d += pair, panel += panel_keys * pair) {
            keep_loop();
            decltype(Panel::load_panel(panel)) column[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) column[n] = Panel::load_panel(panel + n * Vec::width * pair);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const auto query = Panel::repeat(queries + m * dim_ + d);
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) sums[m][n] = Panel::accumulate(query, column[n], sums[m][n]);
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) store(scores + m * block_keys + n * Vec::width, sums[m][n]);
        }
    }

    /// Turns the scores of `count` rows into weights e^(score - maximum). A row's maximum is raised, and its sums are
    /// scaled down to it, only where a score exceeds it by so much that this cannot wait. Rows: `row` of the sums, r of
    /// the pass.
    template <class Adjust>
    void soften(const Sums& sums, int row, int r, int count, const Part& part, const Part* seen, const Adjust& adjust,
                const float* value_scales) const {
        const int begin = part.first_vector(2), end = part.end_of_vectors(2);
        float scales[round_up(panel_rows, Vec::width)] = {};
        float bounds[panel_rows];
        for (int m = 0; m < count; ++m) {
            float* scores = scores_ + (r + m) * block_keys;
            adjust(scores, row + m, begin, end);
            std::fill(scores + begin, scores + std::max(begin, seen[r + m].first), minus_infinity);
            std::fill(scores + std::max(begin, seen[r + m].last), scores + end, minus_infinity);
            Vec highest = maximum(load(scores + begin), load(scores + begin + Vec::width));
            for (int j = begin + 2 * Vec::width; j < end; j += 2 * Vec::width) {
                highest = maximum(highest, maximum(load(scores + j), load(scores + j + Vec::width)));
            }
            const float before = sums.maximum[row + m];
            const float most = largest(highest), raised = most > before + slack ? most : before;
            // No key seen yet: any finite bound makes all weights zero.
            bounds[m] = raised == minus_infinity ? 0.0F : raised;
            scales[m] = before - bounds[m];
            sums.maximum[row + m] = raised;
        }
        for (int m = 0; m < count; m += Vec::width) store(scales + m, exp(load(scales + m)));
        for (int m = 0; m < count; ++m) {
            const float* scores = scores_ + (r + m) * block_keys;
            X* weights = weights_ + (r + m) * block_keys;
            const Vec bound = broadcast(bounds[m]);
            Vec total = zero();
            for (int j = begin; j < end; j += 2 * Vec::width) {
                const Vec a = Panel::weight(load(scores + j), bound);
                const Vec b = Panel::weight(load(scores + j + Vec::width), bound);
                if (value_scales == nullptr) {
                    total = Panel::put_weights(weights + j, a, b, total);
                } else {
                    Panel::put_weights(weights + j, a * load(value_scales + j), b * load(value_scales + j + Vec::width),
                                       zero());
                    total = total + a + b;
                }
            }
            sums.total[row + m] = sums.total[row + m] * scales[m] + sum(total);
            if (scales[m] != 1.0F) {
                const Vec scale = broadcast(scales[m]);
                float* values = sums.values + (row + m) * dim_;
                for (std::int64_t d = 0; d < dim_; d += Vec::width) store(values + d, load(values + d) * scale);
            }
        }
    }

    /// Calls weigh_panel for `vectors` ≤ N vectors, an even number.
    template <int N>
    void weigh(int vectors, float* values, const X* weights, const X* panel, const Part& part) const {
        if (vectors == N) return weigh_panel<N>(values, weights, panel, part);
        if constexpr (N > 2) weigh<N - 2>(vectors, values, weights, panel, part);
    }

    /// values[m] += Σ weights[m][j] · v[j] of panel_rows rows and N vectors of the head, over a part of the block.
    template <int N>
    void weigh_panel(float* values, const X* weights, const X* panel, const Part& part) const {
        constexpr int M = panel_rows, pair = Panel::pair, step = N * Vec::width * pair;
        Vec sums[M][N];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = load(values + m * dim_ + n * Vec::width);
        }
        int j = part.first / pair * pair;
        const X* from = panel + j * (N * Vec::width);
        for (; j < part.last; j += pair, from += step) {
            keep_loop();
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
            for (int n = 0; n < N; ++n) store(values + m * dim_ + n * Vec::width, sums[m][n]);
        }
    }

    std::int64_t head_dim_;
    std::int64_t dim_;  // padded to pairs of vectors
    X* queries_;
    X* keys_;
    X* values_;
    X* room_;
    float* scores_;
    X* weights_;
};

}  // namespace fermi::cpu::FERMI_ISA
