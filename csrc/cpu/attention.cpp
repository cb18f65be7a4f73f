// Attention of ragged queries over a paged KV cache, with online softmax (arXiv 2205.14135).
//
// The queries of one sequence and the heads that share a KV head are rows of one matrix: row r is query r / group, head
// kv_head · group + r % group. An item of work is a tile of such rows against the keys of one or of all spans.
//
//   block  64 positions: one matrix of scores, one step of the online softmax
//   span  512 positions: sums of its own, joined afterwards in order of position
//
// Both are aligned to absolute positions, keys a row does not see add exact zeros, and every dot product has its own
// accumulator: so a row's bits depend on its query and its keys only. Spans exist to be computed by several lanes: when
// there are few rows, each span's sums go to shared scratch memory and are joined by a second pass. Otherwise a lane
// joins them as it goes, by the same arithmetic.
#include <array>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/product.h"
#include "cpu/simd.h"
#include "cpu/simd/math.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

constexpr int block_keys = 64;
constexpr int span_keys = 512;
constexpr int tile_queries = 16;  // rows of a tile
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
/// Spans are handed out one by one only while their sums fit here.
constexpr std::int64_t most_split_bytes = std::int64_t{64} << 20;

static_assert(block_keys % Vec::width == 0 && tile_queries % Vec::width == 0 && span_keys % block_keys == 0);

/// What follows from the shapes alone.
struct Plan {
    std::int64_t tokens, heads, kv_heads, head_dim, sequences;
    std::int64_t group;       // heads that share a KV head
    std::int64_t dim;         // head_dim padded to whole vectors
    std::int64_t most_spans;  // of a full block table
    bool split;               // spans are separate items

    Plan(const Attention& op, int lanes)
        : tokens(op.q.size(0)),
          heads(op.q.size(1)),
          kv_heads(op.key_cache.size(1)),
          head_dim(op.q.size(2)),
          sequences(op.context_lengths.size(0)),
          group(heads / kv_heads),
          dim(round_up(head_dim, Vec::width)),
          most_spans((op.block_tables.size(1) * op.key_cache.size(2) + span_keys - 1) / span_keys) {
        const std::int64_t items = sequences * kv_heads + tokens * heads / tile_queries;
        split = lanes > 1 && items < 8 * lanes && most_spans > 1 &&
                tokens * heads * most_spans * (dim + 2) * 4 <= most_split_bytes;
    }
};

/// Softmax-weighted sums of values over some keys, for the rows of a tile: Σ e^(s - maximum) v, and Σ e^(s - maximum).
struct Sums {
    float* maximum;  // [tile_queries]
    float* total;    // [tile_queries]
    float* values;   // [tile_queries, dim]

    static std::int64_t floats(std::int64_t dim) { return tile_queries * (dim + 2); }
    static Sums at(float* memory, std::int64_t dim) {
        return {memory + tile_queries * dim, memory + tile_queries * (dim + 1), memory};
    }
    void clear(std::int64_t dim) const {
        std::fill_n(maximum, tile_queries, minus_infinity);
        std::fill_n(total, tile_queries, 0.0F);
        std::fill_n(values, tile_queries * dim, 0.0F);
    }
};

/// The scratch memory of one lane.
struct Workspace {
    float* queries;  // [tile_queries, dim], scaled, zeros beyond head_dim
    float* scores;   // [tile_queries, block_keys]
    Sums span;
    Sums whole;

    static std::size_t bytes(std::int64_t dim) {
        return float_bytes(tile_queries * (dim + block_keys) + 2 * Sums::floats(dim));
    }
    Workspace(std::byte* memory, std::int64_t dim)
        : queries(reinterpret_cast<float*>(memory)),
          scores(queries + tile_queries * dim),
          span(Sums::at(scores + tile_queries * block_keys, dim)),
          whole(Sums::at(scores + tile_queries * block_keys + Sums::floats(dim), dim)) {}
};

/// Sums of single rows and spans, [tokens, heads, spans], where spans are separate items.
struct SharedSums {
    float* memory;
    const Plan& plan;

    static std::size_t bytes(const Plan& plan) {
        return float_bytes(plan.tokens * plan.heads * plan.most_spans * (plan.dim + 2));
    }
    /// values [dim], maximum, total
    float* at(std::int64_t token, std::int64_t head, std::int64_t span) const {
        return memory + ((token * plan.heads + head) * plan.most_spans + span) * (plan.dim + 2);
    }
};

/// A sequence of the batch.
struct Sequence {
    std::int64_t first_token;
    std::int64_t queries;
    std::int64_t context;
    const std::int32_t* blocks;
    std::int64_t blocks_stride;

    Sequence(const Attention& op, std::int64_t s) {
        const std::int32_t* starts = op.query_starts.data<std::int32_t>();
        const std::int64_t stride = op.query_starts.stride(0);
        first_token = starts[s * stride];
        queries = starts[(s + 1) * stride] - first_token;
        context = op.context_lengths.data<std::int32_t>()[s * op.context_lengths.stride(0)];
        blocks = op.block_tables.data<std::int32_t>() + s * op.block_tables.stride(0);
        blocks_stride = op.block_tables.stride(1);
    }
    /// Positions that query j sees.
    Range visible(std::int64_t j, std::int32_t window) const {
        const std::int64_t end = context - queries + j + 1;
        return {window > 0 ? std::max<std::int64_t>(0, end - window) : 0, std::max<std::int64_t>(0, end)};
    }
};

/// Rows [begin, end) of one sequence and KV head, at most tile_queries of them.
struct Tile {
    const Sequence& sequence;
    std::int64_t kv_head;
    Range rows;
    std::int64_t group;
    std::int32_t window;

    int count() const { return static_cast<int>(rows.end - rows.begin); }
    std::int64_t token(std::int64_t r) const { return sequence.first_token + (rows.begin + r) / group; }
    std::int64_t head(std::int64_t r) const { return kv_head * group + (rows.begin + r) % group; }
    Range visible(std::int64_t r) const { return sequence.visible((rows.begin + r) / group, window); }
    /// Positions that any of its rows sees: later queries see later keys.
    Range keys() const { return {visible(0).begin, visible(count() - 1).end}; }
};

/// Addresses of one KV head's vectors at the positions of a block.
template <class T>
struct Rows {
    std::array<const T*, block_keys> at;  // by position - start
    int first = 0, last = 0;              // those of them that are set

    /// None.
    Rows() {}
    /// The positions in [start, start + block_keys) that the tile sees.
    Rows(const Tensor& cache, const Tile& tile, std::int64_t start) {
        const Range visible = tile.keys();
        const std::int64_t begin = std::max(start, visible.begin), end = std::min(start + block_keys, visible.end);
        if (begin >= end) return;
        first = static_cast<int>(begin - start);
        last = static_cast<int>(end - start);
        const std::int64_t size = cache.size(2), stride = cache.stride(2);
        std::int64_t block = begin / size, offset = begin % size;
        const T* row = address(cache, tile, block) + offset * stride;
        for (int j = first; j < last; ++j) {
            at[static_cast<std::size_t>(j)] = row;
            row += stride;
            if (++offset == size && j + 1 < last) {
                offset = 0;
                row = address(cache, tile, ++block);
            }
        }
    }
    const T* operator[](int j) const { return at[static_cast<std::size_t>(j)]; }
    /// Asks for the memory of row j, if it is one of the positions.
    FERMI_INLINE void fetch(int j, std::int64_t head_dim) const {
        if (j < first || j >= last) return;
        constexpr std::int64_t line = 64 / sizeof(T);
        for (std::int64_t d = 0; d < head_dim; d += line) prefetch((*this)[j] + d);
    }

  private:
    static const T* address(const Tensor& cache, const Tile& tile, std::int64_t block) {
        const std::int64_t index = tile.sequence.blocks[block * tile.sequence.blocks_stride];
        return cache.data<T>() + index * cache.stride(0) + tile.kv_head * cache.stride(1);
    }
};

/// Copies the tile's queries to the workspace, scaled.
void load_queries(const Attention& op, const Tile& tile, const Plan& plan, float* queries) {
    const Vec scale = broadcast(op.scale);
    for (int r = 0; r < tile.count(); ++r) {
        const float* q = op.q.data<float>() + tile.token(r) * op.q.stride(0) + tile.head(r) * op.q.stride(1);
        float* row = queries + r * plan.dim;
        std::int64_t d = 0;
        for (; d + Vec::width <= plan.head_dim; d += Vec::width) store(row + d, load(q + d) * scale);
        if (d < plan.dim) store(row + d, load_partial(q + d, static_cast<int>(plan.head_dim - d)) * scale);
    }
}

/// scores[r][j .. j + N) = queries[r] · keys[j .. j + N) for M rows.
template <int M, int N, class T>
void score_keys(float* scores, const float* queries, const Plan& plan, const Rows<T>& keys, int j) {
    const T* columns[N];
    for (int n = 0; n < N; ++n) columns[n] = keys[j + n];
    Vec sums[M][N];
    for (auto& row : sums) std::fill_n(row, N, zero());
    accumulate_tile<FloatDot<T>>(sums, queries, plan.dim, columns, plan.head_dim, [](std::int64_t) {});
    for (int m = 0; m < M; ++m) {
        float results[N];
        sum_row(sums[m], results);
        std::copy_n(results, N, scores + m * block_keys + j);
    }
}

/// All scores of M rows. The values at the same positions are wanted next.
template <int M, class T>
void score_rows(float* scores, const float* queries, const Plan& plan, const Rows<T>& keys, const Rows<T>& next) {
    constexpr int N = 4;
    int j = keys.first;
    for (; j + N <= keys.last; j += N) {
        for (int n = 0; n < N; ++n) next.fetch(j + n, plan.head_dim);
        score_keys<M, N>(scores, queries, plan, keys, j);
    }
    for (; j < keys.last; ++j) {
        next.fetch(j, plan.head_dim);
        score_keys<M, 1>(scores, queries, plan, keys, j);
    }
}

/// values[r] += Σ weights[r][j] · v[j] for M rows, N vectors of the head from `d` on, in order of j.
template <int M, int N, class T>
void weigh_values(float* values, const float* weights, const Plan& plan, std::int64_t d, const Rows<T>& v,
                  const Rows<T>& next) {
    Vec sums[M][N];
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) sums[m][n] = load(values + m * plan.dim + d + n * Vec::width);
    }
    // Only the last vector of a head may be cut short.
    const int partial = static_cast<int>(std::min<std::int64_t>(Vec::width, plan.head_dim - d - (N - 1) * Vec::width));
    for (int j = v.first; j < v.last; ++j) {
        next.fetch(j, plan.head_dim);
        Vec row[N];
        for (int n = 0; n < N - 1; ++n) row[n] = load(v[j] + d + n * Vec::width);
        const T* end = v[j] + d + (N - 1) * Vec::width;
        row[N - 1] = partial == Vec::width ? load(end) : load_partial(end, partial);
        for (int m = 0; m < M; ++m) {
            const Vec weight = broadcast(weights[m * block_keys + j]);
            for (int n = 0; n < N; ++n) sums[m][n] = fma(weight, row[n], sums[m][n]);
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) store(values + m * plan.dim + d + n * Vec::width, sums[m][n]);
    }
}

/// All values of M rows. The next block's keys are wanted next.
template <int M, class T>
void weigh_rows(float* values, const float* weights, const Plan& plan, const Rows<T>& v, const Rows<T>& next) {
    constexpr int N = 4;
    std::int64_t d = 0;
    const Rows<T> none;
    for (; d + N * Vec::width <= plan.dim; d += N * Vec::width) {
        weigh_values<M, N>(values, weights, plan, d, v, d == 0 ? next : none);
    }
    for (; d < plan.dim; d += Vec::width) weigh_values<M, 1>(values, weights, plan, d, v, d == 0 ? next : none);
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
/// Positions outside of [start, start + block_keys) ∩ what a row sees get weight zero.
void soften(const Tile& tile, const Plan& plan, std::int64_t start, float* scores, const Sums& sums) {
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
        float* row = scores + r * block_keys;
        const Vec bound = broadcast(bounds[r]);
        Vec total = zero();
        for (int j = 0; j < block_keys; j += Vec::width) {
            const Vec weight = exp(load(row + j) - bound);
            store(row + j, weight);
            total = total + weight;
        }
        sums.total[r] = sums.total[r] * scales[r] + sum(total);
        if (scales[r] != 1.0F) {
            const Vec scale = broadcast(scales[r]);
            float* values = sums.values + r * plan.dim;
            for (std::int64_t d = 0; d < plan.dim; d += Vec::width) store(values + d, load(values + d) * scale);
        }
    }
}

/// Adds the block of positions from `start` on to the sums.
template <class T>
void attend_block(const Attention& op, const Tile& tile, const Plan& plan, std::int64_t start, const Workspace& work) {
    const Rows<T> keys(op.key_cache, tile, start);
    const Rows<T> values(op.value_cache, tile, start);
    const Rows<T> next_keys(op.key_cache, tile, start + block_keys);
    const Rows<T> none;  // the first rows of the tile fetch for all
    in_groups<tile_rows>(tile.count(), [&](auto m, int r) {
        score_rows<m()>(work.scores + r * block_keys, work.queries + r * plan.dim, plan, keys, r == 0 ? values : none);
    });
    soften(tile, plan, start, work.scores, work.span);
    in_groups<tile_rows>(tile.count(), [&](auto m, int r) {
        weigh_rows<m()>(work.span.values + r * plan.dim, work.scores + r * block_keys, plan, values,
                        r == 0 ? next_keys : none);
    });
}

/// The sums over one span, in work.span.
template <class T>
void attend_span(const Attention& op, const Tile& tile, const Plan& plan, std::int64_t span, const Workspace& work) {
    work.span.clear(plan.dim);
    const Range keys = tile.keys();
    const std::int64_t end = std::min(keys.end, (span + 1) * span_keys);
    std::int64_t start = std::max(span * span_keys, keys.begin / block_keys * block_keys);
    for (; start < end; start += block_keys) attend_block<T>(op, tile, plan, start, work);
}

/// One row's sums over more keys: sums := sums + addend.
void join(float& maximum, float& total, float* values, float addend_maximum, float addend_total, const float* addend,
          std::int64_t dim) {
    if (addend_maximum == minus_infinity) return;  // sees no key of this span
    const float raised = std::max(maximum, addend_maximum);
    float scales[Vec::width] = {maximum - raised, addend_maximum - raised};
    store(scales, exp(load(scales)));
    const Vec scale = broadcast(scales[0]), addend_scale = broadcast(scales[1]);
    for (std::int64_t d = 0; d < dim; d += Vec::width) {
        store(values + d, fma(load(values + d), scale, load(addend + d) * addend_scale));
    }
    total = total * scales[0] + addend_total * scales[1];
    maximum = raised;
}

/// out = values / total; zero for a row that sees nothing.
void finish(float* out, float total, const float* values, std::int64_t head_dim) {
    const Vec inverse = broadcast(total > 0.0F || total != total ? 1.0F / total : 0.0F);
    std::int64_t d = 0;
    for (; d + Vec::width <= head_dim; d += Vec::width) store(out + d, load(values + d) * inverse);
    if (d < head_dim) store_partial(out + d, load(values + d) * inverse, static_cast<int>(head_dim - d));
}

float* out_row(const Attention& op, const Plan& plan, std::int64_t token, std::int64_t head) {
    return op.out.data<float>() + token * op.out.stride(0) + head * plan.head_dim;
}

Range spans_of(Range keys) {
    return {keys.begin / span_keys, std::max(keys.begin / span_keys, (keys.end + span_keys - 1) / span_keys)};
}

template <class T>
void attend_all(const Attention& op, const Tile& tile, const Plan& plan, const Workspace& work) {
    load_queries(op, tile, plan, work.queries);
    work.whole.clear(plan.dim);
    const Range spans = spans_of(tile.keys());
    for (std::int64_t span = spans.begin; span < spans.end; ++span) {
        attend_span<T>(op, tile, plan, span, work);
        for (int r = 0; r < tile.count(); ++r) {
            join(work.whole.maximum[r], work.whole.total[r], work.whole.values + r * plan.dim, work.span.maximum[r],
                 work.span.total[r], work.span.values + r * plan.dim, plan.dim);
        }
    }
    for (int r = 0; r < tile.count(); ++r) {
        finish(out_row(op, plan, tile.token(r), tile.head(r)), work.whole.total[r], work.whole.values + r * plan.dim,
               plan.head_dim);
    }
}

template <class T>
void attend_one(const Attention& op, const Tile& tile, const Plan& plan, std::int64_t span, const Workspace& work,
                const SharedSums& shared) {
    load_queries(op, tile, plan, work.queries);
    attend_span<T>(op, tile, plan, span, work);
    for (int r = 0; r < tile.count(); ++r) {
        float* sums = shared.at(tile.token(r), tile.head(r), span);
        std::copy_n(work.span.values + r * plan.dim, plan.dim, sums);
        sums[plan.dim] = work.span.maximum[r];
        sums[plan.dim + 1] = work.span.total[r];
    }
}

/// Joins the spans of this lane's share of the rows.
void join_spans(const Attention& op, const Plan& plan, const Lane& lane, const Workspace& work,
                const SharedSums& shared) {
    const Range heads = lane.share(plan.tokens * plan.heads);
    for (std::int64_t s = 0; s < plan.sequences; ++s) {
        const Sequence sequence(op, s);
        const std::int64_t begin = std::max(heads.begin, sequence.first_token * plan.heads);
        const std::int64_t end = std::min(heads.end, (sequence.first_token + sequence.queries) * plan.heads);
        for (std::int64_t item = begin; item < end; ++item) {
            const std::int64_t token = item / plan.heads, head = item % plan.heads;
            work.whole.clear(plan.dim);
            const Range spans = spans_of(sequence.visible(token - sequence.first_token, op.window));
            for (std::int64_t span = spans.begin; span < spans.end; ++span) {
                const float* sums = shared.at(token, head, span);
                join(work.whole.maximum[0], work.whole.total[0], work.whole.values, sums[plan.dim], sums[plan.dim + 1],
                     sums, plan.dim);
            }
            finish(out_row(op, plan, token, head), work.whole.total[0], work.whole.values, plan.head_dim);
        }
    }
}

/// Calls attend(tile, span) for the items this lane gets; `span` means nothing unless spans are separate items.
template <class Attend>
void for_items(const Attention& op, const Plan& plan, const Lane& lane, const Attend& attend) {
    std::int64_t first = 0;  // the sequence's first item
    std::int64_t ticket = lane.take();
    for (std::int64_t s = 0; s < plan.sequences; ++s) {
        const Sequence sequence(op, s);
        if (sequence.queries <= 0) continue;
        const std::int64_t rows = sequence.queries * plan.group;
        const std::int64_t tiles = (rows + tile_queries - 1) / tile_queries;
        const Range spans =
            plan.split ? spans_of({sequence.visible(0, op.window).begin, sequence.context}) : Range{0, 1};
        const std::int64_t per_tile = spans.end - spans.begin;
        const std::int64_t items = plan.kv_heads * tiles * per_tile;
        for (; ticket < first + items; ticket = lane.take()) {
            const std::int64_t item = ticket - first;
            // The last tile first: it sees the most keys, and lanes should end together.
            const std::int64_t tile = tiles - 1 - item / per_tile % tiles;
            const Range range{tile * tile_queries, std::min(rows, (tile + 1) * tile_queries)};
            attend(Tile{sequence, item / per_tile / tiles, range, plan.group, op.window},
                   spans.begin + item % per_tile);
        }
        first += items;
    }
}

}  // namespace

Scratch scratch_of(const Attention& op, int lanes) {
    const Plan plan(op, lanes);
    return {.shared = plan.split ? SharedSums::bytes(plan) : 0, .own = Workspace::bytes(plan.dim)};
}

void run(const Attention& op, const Lane& lane) {
    const Plan plan(op, lane.count);
    const Workspace work(lane.own, plan.dim);
    const SharedSums shared{reinterpret_cast<float*>(lane.shared), plan};
    with_float(op.key_cache.dtype(), [&]<class T>(T) {
        for_items(op, plan, lane, [&](const Tile& tile, std::int64_t span) {
            plan.split ? attend_one<T>(op, tile, plan, span, work, shared) : attend_all<T>(op, tile, plan, work);
        });
    });
    if (plan.split) {
        lane.wait();
        join_spans(op, plan, lane, work, shared);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
