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
#include "cpu/attention_block.h"
#include "cpu/attention_layout.h"
#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Copies the tile's queries to the workspace, scaled.
template <class X>
void load_queries(const Attention& op, const Tile& tile, const Plan& plan, X* queries) {
    const Vec scale = broadcast(op.scale);
    for (int r = 0; r < tile.count(); ++r) {
        const float* q = op.q.data<float>() + tile.token(r) * op.q.stride(0) + tile.head(r) * op.q.stride(1);
        X* row = queries + r * plan.dim;
        std::int64_t d = 0;
        for (; d + Vec::width <= plan.head_dim; d += Vec::width) store(row + d, load(q + d) * scale);
        if (d < plan.head_dim) {
            store(row + d, load_partial(q + d, static_cast<int>(plan.head_dim - d)) * scale);
            d += Vec::width;
        }
        for (; d < plan.dim; d += Vec::width) store(row + d, zero());
    }
}

/// The sums over one span, in work.span.
template <class Dot, class T>
void attend_span(const Attention& op, const Tile& tile, const Plan& plan, std::int64_t span,
                 const Workspace<typename Dot::X>& work) {
    work.span.clear(plan.dim);
    const Range keys = tile.keys();
    const std::int64_t end = std::min(keys.end, (span + 1) * span_keys);
    std::int64_t start = std::max(span * span_keys, keys.begin / block_keys * block_keys);
    for (; start < end; start += block_keys) attend_block<Dot, T>(op, tile, plan, start, work);
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

template <class Dot, class T>
void attend_all(const Attention& op, const Tile& tile, const Plan& plan, const Workspace<typename Dot::X>& work) {
    load_queries(op, tile, plan, work.queries);
    work.whole.clear(plan.dim);
    const Range spans = spans_of(tile.keys());
    for (std::int64_t span = spans.begin; span < spans.end; ++span) {
        attend_span<Dot, T>(op, tile, plan, span, work);
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

template <class Dot, class T>
void attend_one(const Attention& op, const Tile& tile, const Plan& plan, std::int64_t span,
                const Workspace<typename Dot::X>& work, const SharedSums& shared) {
    load_queries(op, tile, plan, work.queries);
    attend_span<Dot, T>(op, tile, plan, span, work);
    for (int r = 0; r < tile.count(); ++r) {
        float* sums = shared.at(tile.token(r), tile.head(r), span);
        std::copy_n(work.span.values + r * plan.dim, plan.dim, sums);
        sums[plan.dim] = work.span.maximum[r];
        sums[plan.dim + 1] = work.span.total[r];
    }
}

/// Joins the spans of this lane's share of the rows.
void join_spans(const Attention& op, const Plan& plan, const Lane& lane, const Sums& whole, const SharedSums& shared) {
    const Range heads = lane.share(plan.tokens * plan.heads);
    for (std::int64_t s = 0; s < plan.sequences; ++s) {
        const Sequence sequence(op, s);
        const std::int64_t begin = std::max(heads.begin, sequence.first_token * plan.heads);
        const std::int64_t end = std::min(heads.end, (sequence.first_token + sequence.queries) * plan.heads);
        for (std::int64_t item = begin; item < end; ++item) {
            const std::int64_t token = item / plan.heads, head = item % plan.heads;
            whole.clear(plan.dim);
            const Range spans = spans_of(sequence.visible(token - sequence.first_token, op.window));
            for (std::int64_t span = spans.begin; span < spans.end; ++span) {
                const float* sums = shared.at(token, head, span);
                join(whole.maximum[0], whole.total[0], whole.values, sums[plan.dim], sums[plan.dim + 1], sums,
                     plan.dim);
            }
            finish(out_row(op, plan, token, head), whole.total[0], whole.values, plan.head_dim);
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

/// Calls visitor(Dot{}, T{}): how the op multiplies, and what its cache holds.
template <class Visitor>
void with_dot(const Attention& op, Visitor&& visitor) {
    if constexpr (has_bf16_dot) {
        static const bool usable = bf16_dot_usable();
        if (usable && op.key_cache.dtype() == DType::bf16) return visitor(BFloat16Dot{}, bf16{});
    }
    with_float(op.key_cache.dtype(), [&]<class T>(T) { visitor(FloatDot<T>{}, T{}); });
}

}  // namespace

Scratch scratch_of(const Attention& op, int lanes) {
    Scratch scratch;
    with_dot(op, [&]<class Dot, class T>(Dot, T) {
        const Plan plan(op, lanes, Dot::step);
        scratch = {.shared = plan.split ? SharedSums::bytes(plan) : 0,
                   .own = Workspace<typename Dot::X>::bytes(plan.dim)};
    });
    return scratch;
}

void run(const Attention& op, const Lane& lane) {
    with_dot(op, [&]<class Dot, class T>(Dot, T) {
        const Plan plan(op, lane.count, Dot::step);
        const Workspace<typename Dot::X> work(lane.own, plan.dim);
        const SharedSums shared{reinterpret_cast<float*>(lane.shared), plan};
        for_items(op, plan, lane, [&](const Tile& tile, std::int64_t span) {
            plan.split ? attend_one<Dot, T>(op, tile, plan, span, work, shared)
                       : attend_all<Dot, T>(op, tile, plan, work);
        });
        if (plan.split) {
            lane.wait();
            join_spans(op, plan, lane, work.whole, shared);
        }
    });
}

}  // namespace fermi::cpu::FERMI_ISA
