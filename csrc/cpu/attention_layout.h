// How attention cuts its work: rows, tiles, blocks and spans, and the scratch memory of each.
#pragma once

#include <array>
#include <limits>

#include "cpu/lane.h"
#include "cpu/simd.h"
#include "ops.h"

namespace fermi::cpu::FERMI_ISA {

inline constexpr int block_keys = 64;
inline constexpr int span_keys = 512;
inline constexpr int tile_queries = 16;  // rows of a tile
inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
/// Spans are handed out one by one only while their sums fit here.
inline constexpr std::int64_t most_split_bytes = std::int64_t{64} << 20;

static_assert(block_keys % Vec::width == 0 && tile_queries % Vec::width == 0 && span_keys % block_keys == 0);

/// What follows from the shapes alone.
struct Plan {
    std::int64_t tokens, heads, kv_heads, head_dim, sequences;
    std::int64_t group;       // heads that share a KV head
    std::int64_t dim;         // head_dim padded to whole steps of the products
    std::int64_t most_spans;  // of a full block table
    bool split;               // spans are separate items

    Plan(const Attention& op, int lanes, int step)
        : tokens(op.q.size(0)),
          heads(op.q.size(1)),
          kv_heads(op.key_cache.size(1)),
          head_dim(op.q.size(2)),
          sequences(op.context_lengths.size(0)),
          group(heads / kv_heads),
          dim(round_up(head_dim, step)),
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

/// The scratch memory of one lane. X: what queries and weights are rounded to for the products.
template <class X>
struct Workspace {
    float* scores;  // [tile_queries, block_keys]
    Sums span;
    Sums whole;
    X* queries;  // [tile_queries, dim], scaled, zeros beyond head_dim
    X* weights;  // [tile_queries, block_keys]

    static std::size_t bytes(std::int64_t dim) {
        return float_bytes(tile_queries * block_keys + 2 * Sums::floats(dim)) +
               static_cast<std::size_t>(tile_queries * (dim + block_keys)) * sizeof(X);
    }
    Workspace(std::byte* memory, std::int64_t dim)
        : scores(reinterpret_cast<float*>(memory)),
          span(Sums::at(scores + tile_queries * block_keys, dim)),
          whole(Sums::at(scores + tile_queries * block_keys + Sums::floats(dim), dim)),
          queries(reinterpret_cast<X*>(memory + float_bytes(tile_queries * block_keys + 2 * Sums::floats(dim)))),
          weights(queries + tile_queries * dim) {}
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

}  // namespace fermi::cpu::FERMI_ISA
