// Attention of ragged queries over a paged KV cache, with online softmax (arXiv 2205.14135).
//
// The queries of one sequence and the heads that share a KV head are rows of one matrix: row r is query r / group, head
// kv_head · group + r % group. An item of work is a tile of such rows against the keys of one or of all spans:
// positions that have sums of their own, joined afterwards in order.
//
// A sequence with few queries is computed row by row (attention_rows.h), one with many against panels
// (attention_panels.h), unless the op is to be batch-invariant. Spans exist to be computed by several lanes: when there
// are few tiles, each span's sums go to shared scratch memory, and the lane that is the last to be done with a tile
// joins them. Otherwise a lane joins them as it goes, by the same arithmetic: bits do not depend on who does what.
#include <type_traits>

#include "cpu/attention_layout.h"
#include "cpu/attention_panels.h"
#include "cpu/attention_rows.h"
#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Copies the tile's queries to the workspace: scaled, in the order of Two, or rounded to X.
template <class AnyTile, class X, class Order>
void load_queries(const Attention& op, const AnyTile& tile, const Plan& plan, X* queries, Order order) {
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

/// One lane at work on one op. T: what the caches hold.
template <class T>
class Worker {
  public:
    Worker(const Attention& op, const Lane& lane)
        : op_(op),
          lane_(lane),
          plan_(op, lane.count),
          cache_(op),
          work_(lane.own, plan_),
          shared_{reinterpret_cast<float*>(lane.shared), plan_} {}

    /// Computes items as long as there are any.
    void run() {
        ticket_ = lane_.take();
        for (std::int64_t s = 0; s < plan_.sequences; ++s) {
            const Sequence sequence(op_, s);
            if (sequence.queries <= 0) continue;
            if (sequence.by_rows(op_)) {
                run_rows(sequence);
            } else {
                run_panels(sequence);
            }
        }
    }

  private:
    /// Tiles of a sequence with few queries hold several KV heads, which lie side by side: as many as leave each lane
    /// some items.
    void run_rows(const Sequence& sequence) {
        const std::int64_t rows = sequence.queries * plan_.group, heads = plan_.kv_heads;
        const Range spans = spans_of({sequence.visible(0, op_.window).begin, sequence.context}, row_span);
        const std::int64_t items = plan_.sequences * (plan_.split ? std::max<std::int64_t>(1, spans.size()) : 1);
        const std::int64_t enough = lane_.count == 1 ? 1 : (4 * lane_.count + items - 1) / items;
        const std::int64_t wanted = std::min(heads, sequence.queries > few_queries ? heads : enough);
        const std::int64_t chunk = (heads + wanted - 1) / wanted, chunks = (heads + chunk - 1) / chunk;
        const auto tile_at = [&](std::int64_t index, std::int64_t part) {
            return RowTile{sequence,
                           {part * chunk, std::min(heads, (part + 1) * chunk)},
                           {index * row_tile, std::min(rows, (index + 1) * row_tile)},
                           plan_.group,
                           op_.window};
        };
        const auto attend = [&](const RowTile& tile, std::int64_t span) {
            attend_by_rows(tile, plan_, cache_, span * row_span, work_);
        };
        const auto load = [&](const RowTile& tile) { load_queries(op_, tile, plan_, work_.queries, T{}); };
        for_items((rows + row_tile - 1) / row_tile, chunks, spans, row_span, tile_at, load, attend);
    }

    void run_panels(const Sequence& sequence) {
#if defined(FERMI_ISA_AVX512)
        if constexpr (std::is_same_v<T, bf16> || std::is_integral_v<T>) {
            static const bool usable = bf16_dot_usable();
            if (usable) return run_panels<PairPanel>(sequence);
        }
#endif
        run_panels<FloatPanel>(sequence);
    }

    template <class Panel>
    void run_panels(const Sequence& sequence) {
        const std::int64_t rows = sequence.queries * plan_.group;
        const Range spans = spans_of({sequence.visible(0, op_.window).begin, sequence.context}, panel_span);
        const auto tile_at = [&](std::int64_t index, std::int64_t kv_head) {
            return Tile{sequence,
                        kv_head,
                        {index * panel_tile, std::min(rows, (index + 1) * panel_tile)},
                        plan_.group,
                        op_.window};
        };
        const auto load = [&](const Tile& tile) {
            auto* queries = reinterpret_cast<typename Panel::X*>(work_.queries);
            load_queries(op_, tile, plan_, queries, nullptr);
            const std::int64_t count = tile.count();  // as many zeros as fill the last registers
            std::fill_n(queries + count * plan_.dim, (round_up(count, panel_rows) - count) * plan_.dim,
                        typename Panel::X{});
        };
        const auto attend = [&](const Tile& tile, std::int64_t span) {
            const Range keys = tile.keys();
            const std::int64_t begin = std::max(span * panel_span, keys.begin / block_keys * block_keys);
            work_.span.clear(round_up(tile.count(), panel_rows), plan_.dim);
            attend_by_panels<Panel>(tile, plan_, cache_, {begin, std::min(keys.end, (span + 1) * panel_span)}, work_);
        };
        for_items((rows + panel_tile - 1) / panel_tile, plan_.kv_heads, spans, panel_span, tile_at, load, attend);
    }

    static Range spans_of(Range keys, std::int64_t size) {
        return {keys.begin / size, std::max(keys.begin / size, (keys.end + size - 1) / size)};
    }

    /// Computes those of a sequence's items that this lane gets. tile_at(index, part), index < tiles, part < parts;
    /// load brings a tile's queries to the workspace, attend its sums over a span to work_.span.
    template <class TileAt, class Load, class Attend>
    void for_items(std::int64_t tiles, std::int64_t parts, Range spans, std::int64_t size, const TileAt& tile_at,
                   const Load& load, const Attend& attend) {
        const std::int64_t per_tile = plan_.split ? std::max<std::int64_t>(1, spans.size()) : 1;
        const std::int64_t end = first_ + tiles * parts * per_tile;
        for (; ticket_ < end; ticket_ = lane_.take()) {
            const std::int64_t item = ticket_ - first_;
            // The last tile first: it sees the most keys, and lanes should end together. Parts of a tile lie side by
            // side.
            const std::int64_t index = tiles - 1 - item / (per_tile * parts), part = item % parts;
            const auto tile = tile_at(index, part);
            const Range seen = spans_of(tile.keys(), size);
            if (!plan_.split) {
                load(tile);
                attend_all(tile, seen, attend);
                continue;
            }
            const std::int64_t span = spans.begin + item / parts % per_tile;
            if (seen.begin <= span && span < seen.end) {
                load(tile);
                attend(tile, span);
                share(tile, span);
            }
            Counter& done = lane_.counters[first_tile_ + index * parts + part];
            if (done.fetch_add(1, std::memory_order_acq_rel) == per_tile - 1) {
                done.store(0, std::memory_order_relaxed);  // as the next op expects it
                join_shared(tile, size);
            }
        }
        first_ = end;
        first_tile_ += tiles * parts;
    }

    template <class AnyTile, class Attend>
    void attend_all(const AnyTile& tile, Range spans, const Attend& attend) {
        const Sums &whole = work_.whole, &span = work_.span;
        const std::int64_t dim = plan_.dim;
        whole.clear(tile.count(), dim);
        for (std::int64_t s = spans.begin; s < spans.end; ++s) {
            attend(tile, s);
            for (int r = 0; r < tile.count(); ++r) {
                join(whole.maximum[r], whole.total[r], whole.values + r * dim, span.maximum[r], span.total[r],
                     span.values + r * dim, dim);
            }
        }
        for (int r = 0; r < tile.count(); ++r) {
            finish(out_row(op_, plan_, tile.token(r), tile.head(r)), whole.total[r], whole.values + r * dim,
                   plan_.head_dim);
        }
    }

    template <class AnyTile>
    void share(const AnyTile& tile, std::int64_t span) {
        for (int r = 0; r < tile.count(); ++r) {
            float* sums = shared_.at(tile.token(r), tile.head(r), span);
            std::copy_n(work_.span.values + r * plan_.dim, plan_.dim, sums);
            sums[plan_.dim] = work_.span.maximum[r];
            sums[plan_.dim + 1] = work_.span.total[r];
        }
    }

    template <class AnyTile>
    void join_shared(const AnyTile& tile, std::int64_t size) {
        const Sums& whole = work_.whole;
        const std::int64_t dim = plan_.dim;
        for (int r = 0; r < tile.count(); ++r) {
            const std::int64_t token = tile.token(r), head = tile.head(r);
            whole.clear(1, dim);
            const Range spans = spans_of(tile.visible(r), size);
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
    std::int64_t ticket_ = 0;
    std::int64_t first_ = 0;       // the sequence's first item
    std::int64_t first_tile_ = 0;  // and its first tile
};

}  // namespace

Scratch scratch_of(const Attention& op, int lanes) {
    const Plan plan(op, lanes);
    return {.shared = plan.split ? SharedSums::bytes(plan) : 0,
            .own = Workspace::bytes(plan),
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
