// Attention of ragged queries over a paged KV cache, with online softmax (arXiv 2205.14135).
//
// The queries of one sequence and the heads that share a KV head are rows of one matrix: row r is query r / group, head
// kv_head · group + r % group. An item of work is a tile of such rows against the keys of one or of all spans.
//
//   block  64 positions: one matrix of scores, one step of the online softmax
//   span  512 positions: sums of its own, joined afterwards in order of position
//
// Both are aligned to absolute positions. A sequence with few queries is computed row by row (attention_rows.h), one
// with many against panels (attention_panels.h), unless the op is to be batch-invariant. Spans exist to be computed by
// several lanes: when there are few tiles, each span's sums go to shared scratch memory, and the lane that is the last
// to be done with a tile joins them. Otherwise a lane joins them as it goes, by the same arithmetic: bits do not depend
// on who does what.
#include <type_traits>

#include "cpu/attention_layout.h"
#include "cpu/attention_panels.h"
#include "cpu/attention_rows.h"
#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Copies the tile's queries to the workspace: scaled, in the order of Two, or rounded to X.
template <class X, class Order>
void load_queries(const Attention& op, const Tile& tile, const Plan& plan, X* queries, Order order) {
    const Vec scale = broadcast(op.scale);
    for (int r = 0; r < tile.count(); ++r) {
        const float* q = op.q.data<float>() + tile.token(r) * op.q.stride(0) + tile.head(r) * op.q.stride(1);
        X* row = queries + r * plan.dim;
        for (std::int64_t d = 0; d < plan.dim; d += 2 * Vec::width) {
            const std::int64_t rest = plan.head_dim - d;
            Two two = rest >= 2 * Vec::width ? Two{load(q + d), load(q + d + Vec::width)}
                                             : load_two_partial(q + d, static_cast<int>(rest));
            if constexpr (!std::is_same_v<Order, std::nullptr_t>) to_two(two.a, two.b, order);
            store(row + d, two.a * scale);
            store(row + d + Vec::width, two.b * scale);
        }
    }
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

/// One lane at work on one op. T: what the caches hold.
template <class T>
class Worker {
  public:
    Worker(const Attention& op, const Lane& lane)
        : op_(op),
          lane_(lane),
          plan_(op, lane.count),
          cache_(op),
          work_(lane.own, plan_.dim),
          shared_{reinterpret_cast<float*>(lane.shared), plan_} {}

    /// Computes items as long as there are any.
    void run() const {
        std::int64_t first = 0;       // the sequence's first item
        std::int64_t first_tile = 0;  // and its first tile
        std::int64_t ticket = lane_.take();
        for (std::int64_t s = 0; s < plan_.sequences; ++s) {
            const Sequence sequence(op_, s);
            if (sequence.queries <= 0) continue;
            const std::int64_t rows = sequence.queries * plan_.group;
            const std::int64_t size = sequence.by_rows(op_) ? row_tile : panel_tile;
            const std::int64_t tiles = (rows + size - 1) / size;
            const Range spans =
                plan_.split ? spans_of({sequence.visible(0, op_.window).begin, sequence.context}) : Range{0, 1};
            const std::int64_t per_tile = spans.end - spans.begin;
            const std::int64_t items = plan_.kv_heads * tiles * per_tile;
            for (; ticket < first + items; ticket = lane_.take()) {
                const std::int64_t item = ticket - first;
                // The last tile first: it sees the most keys, and lanes should end together.
                const std::int64_t index = tiles - 1 - item / per_tile % tiles;
                const Range range{index * size, std::min(rows, (index + 1) * size)};
                const Tile tile{sequence, item / per_tile / tiles, range, plan_.group, op_.window};
                if (!plan_.split) {
                    attend_all(tile);
                    continue;
                }
                attend_one(tile, spans.begin + item % per_tile);
                auto& done = lane_.counters[first_tile + item / per_tile];
                if (done.fetch_add(1, std::memory_order_acq_rel) == per_tile - 1) {
                    done.store(0, std::memory_order_relaxed);  // as the next op expects it
                    join_spans(tile);
                }
            }
            first += items;
            first_tile += plan_.kv_heads * tiles;
        }
    }

  private:
    /// Calls attend(range, panel) with the queries loaded as the sequence's way of computing wants them; attend then
    /// adds positions to work_.span.
    template <class Attend>
    void with_queries(const Tile& tile, const Attend& attend) const {
        if (tile.sequence.by_rows(op_)) {
            load_queries(op_, tile, plan_, work_.queries, T{});
            attend([&](Range range) { attend_by_rows(tile, plan_, cache_, range, work_); });
            return;
        }
        const auto by_panels = [&]<class Panel>(Panel) {
            auto* queries = reinterpret_cast<typename Panel::X*>(work_.queries);
            load_queries(op_, tile, plan_, queries, nullptr);
            const std::int64_t rows = tile.count();  // as many zeros as fill the last registers
            std::fill_n(queries + rows * plan_.dim, (round_up(rows, panel_rows) - rows) * plan_.dim,
                        typename Panel::X{});
            attend([&](Range range) { attend_by_panels<Panel>(tile, plan_, cache_, range, work_); });
        };
#if defined(FERMI_ISA_AVX512)
        if constexpr (std::is_same_v<T, bf16> || std::is_integral_v<T>) {
            static const bool usable = bf16_dot_usable();
            if (usable) return by_panels(PairPanel{});
        }
#endif
        by_panels(FloatPanel{});
    }

    /// The positions of a span that the tile sees, from the start of a block on.
    static Range part_of(const Tile& tile, std::int64_t span) {
        const Range keys = tile.keys();
        const std::int64_t begin = std::max(span * span_keys, keys.begin / block_keys * block_keys);
        return {begin, std::min(keys.end, (span + 1) * span_keys)};
    }

    void attend_all(const Tile& tile) const {
        with_queries(tile, [&](const auto& attend) {
            const Sums &whole = work_.whole, &span = work_.span;
            const std::int64_t padded = round_up(tile.count(), panel_rows), dim = plan_.dim;
            whole.clear(padded, dim);
            const Range spans = spans_of(tile.keys());
            for (std::int64_t s = spans.begin; s < spans.end; ++s) {
                span.clear(padded, dim);
                attend(part_of(tile, s));
                for (int r = 0; r < tile.count(); ++r) {
                    join(whole.maximum[r], whole.total[r], whole.values + r * dim, span.maximum[r], span.total[r],
                         span.values + r * dim, dim);
                }
            }
            for (int r = 0; r < tile.count(); ++r) {
                finish(out_row(op_, plan_, tile.token(r), tile.head(r)), whole.total[r], whole.values + r * dim,
                       plan_.head_dim);
            }
        });
    }

    void attend_one(const Tile& tile, std::int64_t span) const {
        const Range range = part_of(tile, span);
        if (range.begin >= range.end) return;  // no row sees it, so nobody asks for it
        with_queries(tile, [&](const auto& attend) {
            work_.span.clear(round_up(tile.count(), panel_rows), plan_.dim);
            attend(range);
        });
        for (int r = 0; r < tile.count(); ++r) {
            float* sums = shared_.at(tile.token(r), tile.head(r), span);
            std::copy_n(work_.span.values + r * plan_.dim, plan_.dim, sums);
            sums[plan_.dim] = work_.span.maximum[r];
            sums[plan_.dim + 1] = work_.span.total[r];
        }
    }

    void join_spans(const Tile& tile) const {
        const Sums& whole = work_.whole;
        const std::int64_t dim = plan_.dim;
        for (int r = 0; r < tile.count(); ++r) {
            const std::int64_t token = tile.token(r), head = tile.head(r);
            whole.clear(1, dim);
            const Range spans = spans_of(tile.visible(r));
            for (std::int64_t span = spans.begin; span < spans.end; ++span) {
                const float* sums = shared_.at(token, head, span);
                join(whole.maximum[0], whole.total[0], whole.values, sums[dim], sums[dim + 1], sums, dim);
            }
            finish(out_row(op_, plan_, token, head), whole.total[0], whole.values, plan_.head_dim);
        }
    }

    const Attention& op_;
    const Lane& lane_;
    const Plan plan_;
    const Cache<T> cache_;
    const Workspace work_;
    const SharedSums shared_;
};

}  // namespace

Scratch scratch_of(const Attention& op, int lanes) {
    const Plan plan(op, lanes);
    return {.shared = plan.split ? SharedSums::bytes(plan) : 0,
            .own = Workspace::bytes(plan.dim),
            .counters = plan.split ? static_cast<std::size_t>(plan.most_tiles) : 0};
}

void run(const Attention& op, const Lane& lane) {
    if (op.key_cache.dtype() == DType::i8) {
        Worker<std::int8_t>(op, lane).run();
    } else {
        with_float(op.key_cache.dtype(), [&]<class T>(T) { Worker<T>(op, lane).run(); });
    }
}

}  // namespace fermi::cpu::FERMI_ISA
