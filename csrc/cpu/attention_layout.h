// How attention cuts its work: rows, tiles, blocks and spans, and the scratch memory of each.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "cpu/lane.h"
#include "cpu/simd.h"
#include "ops.h"

namespace fermi::cpu::FERMI_ISA {

inline constexpr int few_queries = 4;   // of a sequence that is computed row by row
inline constexpr int row_span = 128;    // positions that such rows see at a time
inline constexpr int row_tile = 16;     // such rows of a KV head, at most
inline constexpr int pieces_ahead = 3;  // one head's vectors of one block make a piece
inline constexpr int panel_span = 512;  // positions that are joined at a time where there are more queries
inline constexpr int block_keys = 128;  // and that make a panel
inline constexpr int panel_tile = 192;  // rows of a tile that meets panels
inline constexpr int panel_rows = tile_rows >= 3 ? 6 : 2;  // of them, those that are in registers at a time
inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
/// Spans are handed out one by one only while their sums fit here.
inline constexpr std::int64_t most_split_bytes = std::int64_t{256} << 20;

static_assert(block_keys % Vec::width == 0 && panel_span % block_keys == 0 && panel_tile % panel_rows == 0);
static_assert(row_span % Vec::width == 0 && row_span <= panel_span);

/// What follows from the shapes alone.
struct Plan {
    std::int64_t tokens, heads, kv_heads, head_dim, block_size, sequences;
    std::int64_t group;       // heads that share a KV head
    std::int64_t dim;         // head_dim padded to pairs of vectors
    std::int64_t most_spans;  // of a full block table
    std::int64_t most_tiles;  // of any division of the tokens among the sequences
    std::int64_t most_rows;   // of a tile
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
        const std::int64_t items = kv_heads * (sequences + tokens * group / panel_tile);
        split = lanes > 1 && items < 32 * lanes && most_spans > 1 &&
                tokens * heads * most_spans * (dim + 2) * 4 <= most_split_bytes;
    }
};

/// Softmax-weighted sums of values over some keys, for the rows of a tile: Σ e^(s - maximum) v, and Σ e^(s - maximum).
struct Sums {
    float* maximum;  // [most_rows]
    float* total;    // [most_rows]
    float* values;   // [most_rows, dim]

    void clear(std::int64_t rows, std::int64_t dim) const {
        std::fill_n(maximum, rows, minus_infinity);
        std::fill_n(total, rows, 0.0F);
        std::fill_n(values, rows * dim, 0.0F);
    }
};

/// The scratch memory of one lane. Where products are of bf16 pairs, arrays of X hold bf16.
struct Workspace {
    Sums span;
    Sums whole;
    float* queries;       // X [most_rows, dim], scaled, zeros beyond head_dim
    float* scores;        // [most_rows, row_span] of rows, [row_tile, block_keys] where there are panels
    float* weights;       // X [row_tile, block_keys]
    float* key_scales;    // [block_keys]
    float* value_scales;  // [block_keys]
    float* keys;          // X [dim, block_keys] (see attention_panels.h)
    float* values;        // X [block_keys, dim]
    float* rows;          // X [block_keys + 1, dim]

    static std::size_t bytes(const Plan& plan) {
        return float_bytes(plan.most_rows * (4 + 3 * plan.dim + row_span) + row_tile * block_keys + 2 * block_keys +
                           (3 * block_keys + 1) * plan.dim);
    }
    Workspace(std::byte* memory, const Plan& plan) {
        auto* next = reinterpret_cast<float*>(memory);
        const auto take = [&](std::int64_t floats) { return std::exchange(next, next + floats); };
        for (Sums* sums : {&span, &whole}) {
            sums->maximum = take(plan.most_rows);
            sums->total = take(plan.most_rows);
            sums->values = take(plan.most_rows * plan.dim);
        }
        queries = take(plan.most_rows * plan.dim);
        scores = take(plan.most_rows * row_span);
        weights = take(row_tile * block_keys);
        key_scales = take(block_keys);
        value_scales = take(block_keys);
        keys = take(block_keys * plan.dim);
        values = take(block_keys * plan.dim);
        rows = take((block_keys + 1) * plan.dim);
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

/// Rows [begin, end) of one sequence and KV head.
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
    /// Positions that any of its rows from `first` to `last` sees: later queries see later keys.
    Range keys(std::int64_t first, std::int64_t last) const { return {visible(first).begin, visible(last).end}; }
    Range keys() const { return keys(0, count() - 1); }
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

/// Part of a block of positions: the bounds relative to its start, 0 ≤ first ≤ last ≤ size.
struct Part {
    int first;
    int last;

    Part(Range positions, std::int64_t start, int size)
        : first(static_cast<int>(std::clamp<std::int64_t>(positions.begin - start, 0, size))),
          last(static_cast<int>(std::clamp<std::int64_t>(positions.end - start, first, size))) {}
    bool empty() const { return first == last; }
    /// In whole vectors.
    int first_vector() const { return first / Vec::width * Vec::width; }
    int end_of_vectors() const { return (last + Vec::width - 1) / Vec::width * Vec::width; }
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
