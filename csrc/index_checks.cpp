// Which limits each op sets, and the loops that look.
#include "index_checks.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

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

void IndexChecks::add(Limits limits) {
    if (limits.values.device().type != DeviceType::cpu) return;
    if (std::find(limits_.begin(), limits_.end(), limits) == limits_.end()) limits_.push_back(std::move(limits));
}

void IndexChecks::add(const Op& op) {
    if (const auto* embed = std::get_if<Embed>(&op)) {
        add({Embed::name, "token_ids", embed->token_ids.without_lease(), 0, embed->table.rows()});
    } else if (const auto* gather = std::get_if<GatherRows>(&op)) {
        add({GatherRows::name, "rows", gather->rows.without_lease(), 0, gather->x.size(0)});
    } else if (const auto* append = std::get_if<RopeAppend>(&op)) {
        const Tensor& cache = append->key_cache;
        add({RopeAppend::name, "slots", append->slots.without_lease(), std::numeric_limits<std::int32_t>::min(),
             cache.size(0) * cache.size(2)});
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
}

bool IndexChecks::cover(const Tensor& tensor) const {
    const auto meets = [&](const Tensor& indices) { return same_range(indices, tensor); };
    return std::any_of(limits_.begin(), limits_.end(), [&](const Limits& each) { return meets(each.values); }) ||
           std::any_of(tables_.begin(), tables_.end(), [&](const Tables& each) {
               return meets(each.block_tables) || meets(each.query_starts) || meets(each.context_lengths);
           });
}

}  // namespace fermi
