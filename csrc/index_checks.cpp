// Which limits each op sets, and the loops that look.
#include "index_checks.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "operands.h"
#include "overlap.h"

namespace fermi {
namespace {

bool same_view(const Tensor& a, const Tensor& b) {
    return a.storage() == b.storage() && a.offset() == b.offset() && a.shape() == b.shape() &&
           a.strides() == b.strides();
}

/// Element [row] or [row, column] of an i32 tensor.
std::int64_t at(const Tensor& tensor, std::int64_t row, std::int64_t column = 0) {
    const std::int64_t column_stride = tensor.rank() > 1 ? tensor.stride(1) : 0;
    return tensor.data<const std::int32_t>()[row * tensor.stride(0) + column * column_stride];
}

}  // namespace

bool IndexChecks::Limits::operator==(const Limits& other) const {
    return low == other.low && high == other.high && same_view(values, other.values);
}

bool IndexChecks::Tables::operator==(const Tables& other) const {
    return tokens == other.tokens && blocks == other.blocks && block_size == other.block_size &&
           window == other.window && same_view(block_tables, other.block_tables) &&
           same_view(query_starts, other.query_starts) && same_view(context_lengths, other.context_lengths);
}

bool IndexChecks::Starts::operator==(const Starts& other) const {
    return tokens == other.tokens && same_view(values, other.values);
}

void IndexChecks::add(Limits limits) {
    if (limits.values.device().type != DeviceType::cpu) return;
    if (std::find(limits_.begin(), limits_.end(), limits) == limits_.end()) limits_.push_back(std::move(limits));
}

void IndexChecks::add(Starts starts) {
    if (starts.values.device().type != DeviceType::cpu) return;
    if (std::find(starts_.begin(), starts_.end(), starts) == starts_.end()) starts_.push_back(std::move(starts));
}

void IndexChecks::add(const ExpertLinear& op) {
    if (op.experts.elements() == 0) return;  // of no tokens: views of nothing look alike
    const std::int64_t experts = static_cast<std::int64_t>(op.weights.size()) / op.matrices;
    const auto chosen = std::find_if(chosen_.begin(), chosen_.end(),
                                     [&](const Chosen& each) { return same_view(each.values, op.experts); });
    if (chosen == chosen_.end()) {
        add({ExpertLinear::name, "experts", op.experts.without_lease().reshape({op.experts.elements()}), 0, experts});
    } else {
        require(chosen->among <= experts, ExpertLinear::name, ": experts are chosen among ", chosen->among,
                ", there are ", experts);
    }
}

void IndexChecks::forget_overwritten(const Op& op) {
    if (chosen_.empty()) return;
    visit_operands(op, [&](std::string_view, const Tensor& tensor, Access access) {
        if (access == Access::read || !tensor.defined()) return;
        std::erase_if(chosen_, [&](const Chosen& each) { return overlap(each.values, tensor); });
    });
}

void IndexChecks::add(const Op& op) {
    forget_overwritten(op);
    if (const auto* embed = std::get_if<Embed>(&op)) {
        add({Embed::name, "token_ids", embed->token_ids.without_lease(), 0, embed->table.rows()});
    } else if (const auto* gather = std::get_if<GatherRows>(&op)) {
        add({GatherRows::name, "rows", gather->rows.without_lease(), 0, gather->x.size(0)});
    } else if (const auto* append = std::get_if<RopeAppend>(&op)) {
        const Tensor& cache = append->key_cache;
        add({RopeAppend::name, "slots", append->slots.without_lease(), std::numeric_limits<std::int32_t>::min(),
             cache.size(0) * cache.size(2)});
    } else if (const auto* pool = std::get_if<Pool>(&op)) {
        add({Pool::name, pool->starts.without_lease(), pool->x.size(0)});
    } else if (const auto* encoder = std::get_if<EncoderAttention>(&op)) {
        add({EncoderAttention::name, encoder->starts.without_lease(), encoder->q.size(0)});
    } else if (const auto* route = std::get_if<Route>(&op)) {
        chosen_.push_back({route->experts.without_lease(), route->logits.size(1)});
    } else if (const auto* experts = std::get_if<ExpertLinear>(&op)) {
        add(*experts);
    } else if (const auto* attention = std::get_if<Attention>(&op)) {
        if (attention->block_tables.device().type != DeviceType::cpu) return;
        const Tensor& cache = attention->key_cache;
        Tables tables{attention->block_tables.without_lease(),
                      attention->query_starts.without_lease(),
                      attention->context_lengths.without_lease(),
                      attention->q.size(0),
                      cache.size(0),
                      cache.size(2),
                      attention->window};
        if (std::find(tables_.begin(), tables_.end(), tables) == tables_.end()) tables_.push_back(std::move(tables));
    }
}

void IndexChecks::check(const Limits& limits) {
    for (std::int64_t i = 0; i < limits.values.size(0); ++i) {
        const std::int64_t value = at(limits.values, i);
        if (value < limits.low || value >= limits.high) [[unlikely]] {
            const std::string place = message(limits.op, ": ", limits.operand, "[", i, "] is ", value);
            throw InvalidArgument(value < limits.low ? message(place, ", below ", limits.low)
                                                     : message(place, ", beyond the last, ", limits.high - 1));
        }
    }
}

void IndexChecks::check(const Starts& starts) {
    const std::int64_t sequences = starts.values.size(0) - 1;
    require(at(starts.values, 0) == 0, starts.op, ": starts[0] is ", at(starts.values, 0), ", not 0");
    for (std::int64_t i = 0; i < sequences; ++i) {
        require(at(starts.values, i + 1) >= at(starts.values, i), starts.op, ": starts[", i + 1, "] is ",
                at(starts.values, i + 1), ", below the one before");
    }
    require(at(starts.values, sequences) == starts.tokens, starts.op, ": starts end at ", at(starts.values, sequences),
            ", there are ", starts.tokens, " tokens");
}

void IndexChecks::check(const Tables& tables) {
    constexpr std::string_view op = Attention::name;
    const std::int64_t sequences = tables.context_lengths.size(0);
    const std::int64_t capacity = tables.block_tables.size(1) * tables.block_size;
    std::int64_t start = at(tables.query_starts, 0);
    require(start == 0, op, ": query_starts[0] is ", start, ", not 0");
    for (std::int64_t sequence = 0; sequence < sequences; ++sequence) {
        const std::int64_t end = at(tables.query_starts, sequence + 1);
        const std::int64_t context = at(tables.context_lengths, sequence);
        const std::int64_t queries = end - start;
        require(queries >= 0, op, ": query_starts[", sequence + 1, "] is ", end, ", below the one before");
        require(context >= queries, op, ": context_lengths[", sequence, "] is ", context, ", with ", queries,
                " queries");
        require(context <= capacity, op, ": context_lengths[", sequence, "] is ", context, ", block_tables hold ",
                capacity);
        if (queries > 0) {
            const std::int64_t first_key =
                tables.window > 0 ? std::max<std::int64_t>(context - queries - tables.window + 1, 0) : 0;
            for (std::int64_t i = first_key / tables.block_size; i * tables.block_size < context; ++i) {
                const std::int64_t block = at(tables.block_tables, sequence, i);
                require(block >= 0 && block < tables.blocks, op, ": block_tables[", sequence, ", ", i, "] is ", block,
                        ", the cache has ", tables.blocks, " blocks");
            }
        }
        start = end;
    }
    require(start == tables.tokens, op, ": query_starts end at ", start, ", q has ", tables.tokens, " tokens");
}

void IndexChecks::run() const {
    for (const Limits& limits : limits_) check(limits);
    for (const Tables& tables : tables_) check(tables);
    for (const Starts& starts : starts_) check(starts);
}

bool IndexChecks::cover(const Tensor& tensor) const {
    const auto meets = [&](const Tensor& indices) { return same_range(indices, tensor); };
    return std::any_of(limits_.begin(), limits_.end(), [&](const Limits& each) { return meets(each.values); }) ||
           std::any_of(starts_.begin(), starts_.end(), [&](const Starts& each) { return meets(each.values); }) ||
           std::any_of(tables_.begin(), tables_.end(), [&](const Tables& each) {
               return meets(each.block_tables) || meets(each.query_starts) || meets(each.context_lengths);
           });
}

}  // namespace fermi
