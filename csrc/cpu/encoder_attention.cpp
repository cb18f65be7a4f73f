// Grouped-query attention of every token to its whole sequence, with online softmax (arXiv 2205.14135), in f32.
//
// As in attention.cpp, rows are the queries of one sequence and the heads that share a KV head. An item of work is a
// tile of them, or a short sequence's rows of several KV heads: alone they would not be worth their ticket. A tile
// meets the keys in blocks aligned to its sequence, so a row's bits depend on nothing but that.
#include <algorithm>
#include <array>
#include <utility>

#include "cpu/attention_panels.h"
#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

inline constexpr std::int64_t item_rows = 64;  // that are worth a ticket

/// One sequence, one KV head and rows [begin, end).
struct Tile {
    std::int64_t first_token;
    std::int64_t length;
    std::int64_t kv_head;
    Range rows;
};

/// One lane at work on one op.
class Worker {
  public:
    static std::int64_t padded(const EncoderAttention& op) { return round_up(op.q.size(2), 2 * Vec::width); }
    static std::int64_t floats(const EncoderAttention& op) {
        return Sums::floats(panel_tile, padded(op)) + PanelMemory::floats(padded(op));
    }

    Worker(const EncoderAttention& op, const Lane& lane)
        : op_(op),
          lane_(lane),
          kv_heads_(op.k.size(1)),
          head_dim_(op.q.size(2)),
          group_(op.q.size(1) / kv_heads_),
          dim_(padded(op)),
          sums_(reinterpret_cast<float*>(lane.own), panel_tile),
          panels_(PanelMemory(reinterpret_cast<float*>(lane.own) + Sums::floats(panel_tile, dim_), dim_), head_dim_,
                  dim_) {}

    /// Computes items as long as there are any.
    void run() {
        const auto* starts = op_.starts.data<std::int32_t>();
        const std::int64_t stride = op_.starts.stride(0), sequences = op_.starts.size(0) - 1;
        // Many rows share a panel's making, few leave lanes work.
        const std::int64_t most = std::clamp<std::int64_t>(
            round_up(op_.q.size(0) * op_.q.size(1) / (8 * lane_.count), pass_rows), panel_tile / 2, panel_tile);
        std::int64_t ticket = lane_.take(), first = 0;
        for (std::int64_t s = 0; s < sequences; ++s) {
            const std::int64_t token = starts[s * stride], length = starts[(s + 1) * stride] - token;
            if (length <= 0) continue;
            const std::int64_t rows = length * group_;
            const std::int64_t tiles = (rows + most - 1) / most;
            const std::int64_t each = round_up((rows + tiles - 1) / tiles, panel_rows);
            const std::int64_t together = std::clamp<std::int64_t>(item_rows / rows, 1, kv_heads_);
            const std::int64_t parts = (kv_heads_ + together - 1) / together;
            for (; ticket < first + tiles * parts; ticket = lane_.take()) {
                const std::int64_t index = (ticket - first) % tiles, part = (ticket - first) / tiles;
                const Range range{std::min(rows, index * each), std::min(rows, (index + 1) * each)};
                const std::int64_t end = std::min(kv_heads_, (part + 1) * together);
                for (std::int64_t h = part * together; h < end && range.size() > 0; ++h) {
                    attend({token, length, h, range});
                }
            }
            first += tiles * parts;
        }
    }

  private:
    /// Positions that query i of a sequence sees.
    Range seen(std::int64_t i, std::int64_t length) const {
        if (op_.window == 0) return {0, length};
        return {std::max<std::int64_t>(0, i - op_.window), std::min(length, i + op_.window + 1)};
    }

    void attend(const Tile& tile) {
        const int count = static_cast<int>(tile.rows.size());
        // Query and head of each row: counted up, since divisions would take longer than a short sequence's products.
        std::int64_t query = tile.rows.begin / group_, lane = tile.rows.begin % group_;
        for (int r = 0; r < count; ++r) {
            rows_[static_cast<std::size_t>(r)] = {query, tile.kv_head * group_ + lane, seen(query, tile.length)};
            if (++lane == group_) lane = 0, ++query;
        }
        const auto row = [&](int r) -> const Row& { return rows_[static_cast<std::size_t>(r)]; };
        panels_.load_queries(count, op_.scale, [&](int r) {
            return op_.q.data<float>() + (tile.first_token + row(r).query) * op_.q.stride(0) +
                   row(r).head * op_.q.stride(1);
        });
        sums_.clear(round_up(count, panel_rows), dim_);
        const Range keys{row(0).seen.begin, row(count - 1).seen.end};
        const auto vector = [&](const Tensor& x, std::int64_t position) {
            return x.data<float>() + (tile.first_token + position) * x.stride(0) + tile.kv_head * x.stride(1);
        };
        for (std::int64_t start = keys.begin / block_keys * block_keys; start < keys.end; start += block_keys) {
            panels_.load_block(
                Part(keys, start, block_keys), [&](int j) { return vector(op_.k, start + j); },
                [&](int j) { return vector(op_.v, start + j); });
            const auto adjust = [&](float* scores, int r, int begin, int end) {
                if (op_.bias.defined()) add_bias(scores, row(r).head, start - row(r).query, begin, end);
            };
            panels_.attend(sums_, count, start, [&](int r) { return row(r).seen; }, adjust, nullptr, [](int) {});
        }
        panels_.order(sums_, count);
        for (int r = 0; r < count; ++r) {
            float* out =
                op_.out.data<float>() + (tile.first_token + row(r).query) * op_.out.stride(0) + row(r).head * head_dim_;
            finish(out, sums_.total[r], sums_.values + r * dim_, head_dim_);
        }
    }

    /// scores[j] += the bias of key j, which lies `distance` + j behind the query.
    void add_bias(float* scores, std::int64_t head, std::int64_t distance, int begin, int end) const {
        const std::int64_t size = op_.bias.size(1), reach = size / 2;
        const float* bias = op_.bias.data<float>() + head * size;
        for (int j = begin; j < end; j += Vec::width) {
            const std::int64_t first = distance + j + reach;
            if (first >= 0 && first + Vec::width <= size) {
                store(scores + j, load(scores + j) + load(bias + first));
            } else {
                for (int i = 0; i < Vec::width; ++i) {
                    scores[j + i] += bias[std::clamp<std::int64_t>(first + i, 0, size - 1)];
                }
            }
        }
    }

    struct Row {
        std::int64_t query;  // of its sequence
        std::int64_t head;
        Range seen;
    };

    const EncoderAttention& op_;
    const Lane& lane_;
    const std::int64_t kv_heads_;
    const std::int64_t head_dim_;
    const std::int64_t group_;  // heads that share a KV head
    const std::int64_t dim_;    // head_dim padded to pairs of vectors
    const Sums sums_;
    const Panels<FloatPanel> panels_;
    std::array<Row, panel_tile> rows_;  // of the tile
};

}  // namespace

Scratch scratch_of(const EncoderAttention& op, int) {
    return {.own = float_bytes(Worker::floats(op))};
}

void run(const EncoderAttention& op, const Lane& lane) {
    Worker(op, lane).run();
}

}  // namespace fermi::cpu::FERMI_ISA
