#include "cpu/program.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// What a program may move and do at most to be run by the calling thread alone: a fifth of a millisecond. Other lanes
/// would take less than half of that off, and where something else runs on the machine, add milliseconds: at every
/// barrier all wait for the one that has lost its core.
constexpr Cost alone{.bytes = std::uint64_t{5} << 20, .operations = 12'000'000};

/// What an op costs at the most, whatever the lengths that it will read.
Cost bound_of(const Op& op) {
    Cost cost = cost_of(op);
    if (const auto* attention = std::get_if<Attention>(&op)) {
        const Tensor& cache = attention->key_cache;
        const std::int64_t context = attention->block_tables.size(1) * cache.size(2);
        const std::int64_t position =
            2 * cache.size(1) * cache.size(3) * static_cast<std::int64_t>(size_of(cache.dtype()));
        cost.bytes += static_cast<std::uint64_t>(attention->block_tables.size(0) * context * position);
        cost.operations += static_cast<std::uint64_t>(4 * attention->q.elements() * context);
    } else if (const auto* encoder = std::get_if<EncoderAttention>(&op)) {
        cost.operations += static_cast<std::uint64_t>(4 * encoder->q.elements() * encoder->q.size(0));
    }
    return cost;
}

}  // namespace

int lanes_for(const std::vector<Op>& ops, int most) {
    Cost total;
    for (const Op& op : ops) {
        const Cost cost = bound_of(op);
        total.bytes += cost.bytes;
        total.operations += cost.operations;
        if (total.bytes > alone.bytes || total.operations > alone.operations) return most;
    }
    return 1;
}

ListProgram::ListProgram(std::shared_ptr<const std::vector<Op>> ops, std::shared_ptr<ThreadPool> pool,
                         std::shared_ptr<Allocator> allocator, int lanes)
    : ops_(std::move(ops)),
      pool_(std::move(pool)),
      allocator_(std::move(allocator)),
      lanes_(lanes),
      tickets_(ops_->size() * static_cast<std::size_t>(lanes)),
      barrier_(lanes_) {
    Scratch most;
    for (const Op& op : *ops_) {
        const Scratch scratch = std::visit([&](const auto& any) { return scratch_of(any, lanes_); }, op);
        most.shared = std::max(most.shared, scratch.shared);
        most.own = std::max(most.own, scratch.own);
        most.counters = std::max(most.counters, scratch.counters);
    }
    // Lanes write side by side: a page between them keeps their lines and prefetchers apart.
    own_bytes_ = static_cast<std::size_t>(round_up(static_cast<std::int64_t>(most.own), 4096));
    shared_bytes_ = most.shared;
    counters_ = std::vector<Counter>(most.counters);
}

void ListProgram::run() {
    const std::shared_ptr<Storage> shared = allocator_->allocate(shared_bytes_);
    const std::shared_ptr<Storage> own = allocator_->allocate(own_bytes_ * static_cast<std::size_t>(lanes_));
    for (Tickets& tickets : tickets_) tickets.next.store(0, std::memory_order_relaxed);
    auto lane = [&](int index) { run_lane(index, shared->data(), own->data()); };
    if (lanes_ == 1) {
        lane(0);
    } else {
        pool_->run(lane);
    }
}

void ListProgram::run_lane(int index, std::byte* shared, std::byte* own) {
    for (std::size_t i = 0; i < ops_->size(); ++i) {
        if (i != 0) barrier_.wait();
        const Lane lane{index,           lanes_, &tickets_[i * static_cast<std::size_t>(lanes_)],
                        &barrier_,       shared, own + own_bytes_ * static_cast<std::size_t>(index),
                        counters_.data()};
        std::visit([&](const auto& op) { FERMI_ISA::run(op, lane); }, (*ops_)[i]);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
