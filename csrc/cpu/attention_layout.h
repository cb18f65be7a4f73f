// How attention over the KV cache cuts its work: rows, tiles and spans, and the scratch memory of each.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/attention_panels.h"
#include "cpu/lane.h"
#include "cpu/simd.h"
#include "ops.h"

namespace fermi::cpu::FERMI_ISA {

inline constexpr int few_queries = 4;    // of a sequence that is computed row by row
inline constexpr int row_span = 128;     // positions that such rows see at a time
inline constexpr int row_tile = 16;      // such rows of a KV head, at most
inline constexpr int pieces_ahead = 3;   // one head's vectors of one block make a piece
inline constexpr int panel_span = 1024;  // positions that are joined at a time where there are more queries
/// Spans are handed out one by one only while their sums fit here.
inline constexpr std::int64_t most_split_bytes = std::int64_t{256} << 20;

static_assert(panel_span % block_keys == 0 && row_span % Vec::width == 0 && row_span <= panel_span);

/// What follows from the shapes alone.
struct Plan {
    std::int64_t tokens, heads, kv_heads, head_dim, block_size, sequences;
    std::int64_t group;       // heads that share a KV head
    std::int64_t dim;         // head_dim padded to pairs of vectors
    std::int64_t most_spans;  // of a full block table
    std::int64_t most_tiles;  // of any division of the tokens among the sequences
    std::int64_t most_rows;   // of a tile, whole registers of them
    std::int64_t tile;        // rows of one that meets panels: many share a panel's making, few leave lanes work
    bool split;               // spans are separate items

    Plan(const Attention& op, int lanes)
        : tokens(op.q.size(0)),
          heads(op.q.size(1)),
          kv_heads(op.key_cache.size(1)),
          head_dim(op.q.size(2)),
          block_size(op.key_cache.size(2)),
          sequences(op.context_lengths.size(0)),
          group(heads / kv_heads),
          dim(round_up(head_dim, 2 * Vec::width)),
          most_spans((op.block_tables.size(1) * block_size + row_span - 1) / row_span),
          most_tiles(kv_heads * (sequences + tokens * group / row_tile)),
          most_rows(round_up(
              std::max<std::int64_t>(panel_tile, kv_heads * std::min<std::int64_t>(row_tile, tokens * group)), 16)) {
        tile = std::clamp<std::int64_t>(round_up(kv_heads * tokens * group / (8 * lanes), pass_rows), panel_tile / 2,
                                        panel_tile);
        // Sums of separate spans cost memory to write and read: only where there are few tiles.
        const bool few = kv_heads * sequences < 32 * lanes && kv_heads * (tokens * group / tile) < 6 * lanes;
        split = lanes > 1 && few && most_spans > 1 && tokens * heads * most_spans * (dim + 2) * 4 <= most_split_bytes;
    }
};

/// The scratch memory of one lane.
struct Workspace {
    Sums span;
    Sums whole;
    float* queries;       // [most_rows, dim], scaled, zeros beyond head_dim; panels' as PanelMemory has them
    float* scores;        // [most_rows, row_span]
    float* key_scales;    // [block_keys]
    float* value_scales;  // [block_keys]
    PanelMemory panels;

    static std::size_t bytes(const Plan& plan) {
        return float_bytes(2 * Sums::floats(plan.most_rows, plan.dim) + plan.most_rows * (plan.dim + row_span) +
                           2 * block_keys + PanelMemory::floats(plan.dim));
    }
    Workspace(std::byte* memory, const Plan& plan) {
        auto* next = reinterpret_cast<float*>(memory);
        const auto take = [&](std::int64_t floats) { return std::exchange(next, next + floats); };
        span = Sums(take(Sums::floats(plan.most_rows, plan.dim)), plan.most_rows);
        whole = Sums(take(Sums::floats(plan.most_rows, plan.dim)), plan.most_rows);
        queries = take(plan.most_rows * plan.dim);
        scores = take(plan.most_rows * row_span);
        key_scales = take(block_keys);
        value_scales = take(block_keys);
        panels = PanelMemory(take(PanelMemory::floats(plan.dim)), plan.dim);
    }
};

/// Sums of single rows and spans, [spans, tokens, heads], where spans are separate items.
struct SharedSums {
    float* memory;
    const Plan& plan;

    static std::size_t bytes(const Plan& plan) {
        return float_bytes(plan.tokens * plan.heads * plan.most_spans * (plan.dim + 2));
    }
    /// values [dim], maximum, total
    float* at(std::int64_t token, std::int64_t head, std::int64_t span) const {
        return memory + ((span * plan.tokens + token) * plan.heads + head) * (plan.dim + 2);
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
    /// Whether its tiles are computed row by row, else against panels.
    bool by_rows(const Attention& op) const {
        return op.numerics == Numerics::batch_invariant || queries <= few_queries;
    }
    /// Positions that query j sees.
    Range visible(std::int64_t j, std::int32_t window) const {
        const std::int64_t end = context - queries + j + 1;
        return {window > 0 ? std::max<std::int64_t>(0, end - window) : 0, std::max<std::int64_t>(0, end)};
    }
};

/// Of numbers that fit in 32 bits: such a division costs half as much, and rows take several each.
inline std::int64_t divide(std::int64_t a, std::int64_t b) {
    return static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b);
}

/// Rows [begin, end) of one sequence and KV head.
struct Tile {
    const Sequence& sequence;
    std::int64_t kv_head;
    Range rows;
    std::int64_t group;
    std::int32_t window;

    int count() const { return static_cast<int>(rows.end - rows.begin); }
    std::int64_t query(std::int64_t r) const { return divide(rows.begin + r, group); }
    std::int64_t token(std::int64_t r) const { return sequence.first_token + query(r); }
    std::int64_t head(std::int64_t r) const { return kv_head * group + rows.begin + r - query(r) * group; }
    Range visible(std::int64_t r) const { return sequence.visible(query(r), window); }
    /// Positions that any of its rows sees: later queries see later keys.
    Range keys() const { return {visible(0).begin, visible(count() - 1).end}; }
};

/// Rows [begin, end) of one sequence and of each of several KV heads, head by head.
struct RowTile {
    const Sequence& sequence;
    Range kv_heads;
    Range rows;
    std::int64_t group;
    std::int32_t window;

    int heads() const { return static_cast<int>(kv_heads.end - kv_heads.begin); }
    int rows_per_head() const { return static_cast<int>(rows.end - rows.begin); }
    int count() const { return heads() * rows_per_head(); }
    std::int64_t query(std::int64_t r) const { return (rows.begin + r % rows_per_head()) / group; }
    std::int64_t token(std::int64_t r) const { return sequence.first_token + query(r); }
    std::int64_t head(std::int64_t r) const {
        return (kv_heads.begin + r / rows_per_head()) * group + (rows.begin + r % rows_per_head()) % group;
    }
    Range visible(std::int64_t r) const { return sequence.visible(query(r), window); }
    Range keys() const { return {visible(0).begin, visible(count() - 1).end}; }
};

/// Where one KV head's vectors lie at the positions of a block: rows of the caches, head_dim elements each.
struct Positions {
    std::array<std::int64_t, block_keys> rows;  // by position - start
    Part part;                                  // those of them that are set

    /// The positions in [start, start + block_keys) that the tile sees.
    Positions(const Tile& tile, const Plan& plan, std::int64_t start) : part(tile.keys(), start, block_keys) {
        std::int64_t block = (start + part.first) / plan.block_size;
        std::int64_t offset = (start + part.first) % plan.block_size;
        for (int j = part.first; j < part.last; ++block, offset = 0) {
            const std::int64_t index = tile.sequence.blocks[block * tile.sequence.blocks_stride];
            const std::int64_t row = (index * plan.kv_heads + tile.kv_head) * plan.block_size + offset;
            const int count = static_cast<int>(std::min<std::int64_t>(part.last - j, plan.block_size - offset));
            for (int i = 0; i < count; ++i) rows[static_cast<std::size_t>(j + i)] = row + i;
            j += count;
        }
    }
    std::int64_t operator[](int j) const { return rows[static_cast<std::size_t>(j)]; }
    int size() const { return part.last - part.first; }
};

/// The caches of an op. T: what they hold.
template <class T>
struct Cache {
    const T* keys;
    const T* values;
    const float* key_scales;  // null unless T is an integer
    const float* value_scales;
    std::int64_t head_dim;

    explicit Cache(const Attention& op)
        : keys(op.key_cache.data<T>()),
          values(op.value_cache.data<T>()),
          key_scales(nullptr),
          value_scales(nullptr),
          head_dim(op.q.size(2)) {
        if (op.key_scales.defined()) {
            key_scales = op.key_scales.data<float>();
            value_scales = op.value_scales.data<float>();
        }
    }
    const T* key(std::int64_t row) const { return keys + row * head_dim; }
    const T* value(std::int64_t row) const { return values + row * head_dim; }

    /// Asks for a share of a block's keys and values, that of items [begin, end) of `count`.
    void fetch(const Positions& positions, int begin, int end, int count) const {
        const auto at = [&](int i) { return positions.part.first + positions.size() * std::min(i, count) / count; };
        for (int j = at(begin), last = at(end); j < last; ++j) {
            const auto* k = reinterpret_cast<const char*>(key(positions[j]));
            const auto* v = reinterpret_cast<const char*>(value(positions[j]));
            const auto bytes = head_dim * static_cast<std::int64_t>(sizeof(T));
            for (std::int64_t i = 0; i < bytes; i += 64) prefetch_far(k + i), prefetch_far(v + i);
        }
    }

    /// Copies the scales at a block's positions to the workspace; zeros where there are none.
    void load_scales(const Positions& positions, const Workspace& work) const {
        if (key_scales == nullptr) return;
        std::fill_n(work.key_scales, block_keys, 0.0F);
        std::fill_n(work.value_scales, block_keys, 0.0F);
        for (int j = positions.part.first; j < positions.part.last; ++j) {
            work.key_scales[j] = key_scales[positions[j]];
            work.value_scales[j] = value_scales[positions[j]];
        }
    }
};

}  // namespace fermi::cpu::FERMI_ISA
