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

const float* query_row(const Attention& op, std::int64_t token, std::int64_t head) {
    return op.q.data<float>() + token * op.q.stride(0) + head * op.q.stride(1);
}

/// Copies the tile's queries to the workspace: scaled, in the order of Two<T>.
template <class T>
void load_queries(const Attention& op, const RowTile& tile, const Plan& plan, float* queries) {
    const Vec scale = broadcast(op.scale);
    for (int r = 0; r < tile.count(); ++r) {
        const float* q = query_row(op, tile.token(r), tile.head(r));
        float* row = queries + r * plan.dim;
        for (std::int64_t d = 0; d < plan.dim; d += 2 * Vec::width) {
            const std::int64_t rest = plan.head_dim - d;
            Two two = rest >= 2 * Vec::width ? Two{load(q + d), load(q + d + Vec::width)}
                                             : load_two_partial(q + d, static_cast<int>(rest));
            to_two(two.a, two.b, T{});
            store(row + d, two.a * scale);
            store(row + d + Vec::width, two.b * scale);
        }
    }
}

/// One row's sums over more keys: sums := sums + addend.
void join(float& maximum, float& total, float* values, float addend_maximum, float addend_total, const float* addend,
          std::int64_t dim) {
    if (addend_maximum == minus_infinity) return;  // sees no key of this span
    if (maximum == minus_infinity) {
        std::copy_n(addend, dim, values);
        total = addend_total;
        maximum = addend_maximum;
        return;
    }
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
        const auto attend = [&](const RowTile& tile, std::int64_t span, const Sums& sums) {
            attend_by_rows(tile, plan_, cache_, span * row_span, op_.soft_cap, work_, sums);
        };
        const auto load = [&](const RowTile& tile) { load_queries<T>(op_, tile, plan_, work_.queries); };
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
        const std::int64_t tiles = (rows + plan_.tile - 1) / plan_.tile;
        const std::int64_t each = round_up((rows + tiles - 1) / tiles, panel_rows);
        const auto tile_at = [&](std::int64_t index, std::int64_t kv_head) {
            return Tile{sequence,
                        kv_head,
                        {std::min(rows, index * each), std::min(rows, (index + 1) * each)},
                        plan_.group,
                        op_.window};
        };
        const Panels<Panel> panels(work_.panels, plan_.head_dim, plan_.dim);
        std::array<Range, panel_tile> seen;  // by each row
        const auto visible = [&seen](int r) { return seen[static_cast<std::size_t>(r)]; };
        const auto load = [&](const Tile& tile) {
            panels.load_queries(tile.count(), op_.scale,
                                [&](int r) { return query_row(op_, tile.token(r), tile.head(r)); });
            for (int r = 0; r < tile.count(); ++r) seen[static_cast<std::size_t>(r)] = tile.visible(r);
        };
        const auto adjust = [&](float* scores, int, int begin, int end) {
            if constexpr (std::is_integral_v<T>) {
                for (int j = begin; j < end; j += Vec::width) {
                    store(scores + j, FERMI_ISA::load(scores + j) * FERMI_ISA::load(work_.key_scales + j));
                }
            }
            if (op_.soft_cap != 0.0F) cap_scores(scores, begin, end, op_.soft_cap);
        };
        const auto attend = [&](const Tile& tile, std::int64_t span, const Sums& sums) {
            const int count = tile.count();
            const Range keys = tile.keys();
            const std::int64_t end = std::min(keys.end, (span + 1) * panel_span);
            sums.clear(round_up(count, panel_rows), plan_.dim);
            std::int64_t start = std::max(span * panel_span, keys.begin / block_keys * block_keys);
            Positions positions(tile, plan_, start);
            for (; start < end; start += block_keys) {
                panels.load_block(
                    positions.part, [&](int j) { return cache_.key(positions[j]); },
                    [&](int j) { return cache_.value(positions[j]); });
                cache_.load_scales(positions, work_);
                positions = Positions(tile, plan_, start + block_keys);
                panels.attend(sums, count, start, visible, adjust, std::is_integral_v<T> ? work_.value_scales : nullptr,
                              [&](int r) { cache_.fetch(positions, r, r + panel_rows, count); });
            }
            panels.order(sums, count);
        };
        for_items(tiles, plan_.kv_heads, spans, panel_span, tile_at, load, attend);
    }

    static Range spans_of(Range keys, std::int64_t size) {
        return {keys.begin / size, std::max(keys.begin / size, (keys.end + size - 1) / size)};
    }

    /// Computes those of a sequence's items that this lane gets. tile_at(index, part), index < tiles, part < parts;
    /// load brings a tile's queries to the workspace, attend its sums over a span where it is told to.
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
                attend(tile, span, work_.span);
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
        if (spans.size() == 0) whole.clear(tile.count(), dim);
        for (std::int64_t s = spans.begin; s < spans.end; ++s) {
            attend(tile, s, s == spans.begin ? whole : span);
            if (s == spans.begin) continue;
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
