#include "cpu/program.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

ListProgram::ListProgram(std::vector<Op> ops, std::shared_ptr<ThreadPool> pool, Allocator& allocator)
    : ops_(std::move(ops)), pool_(std::move(pool)), tickets_(ops_.size() * lanes()), barrier_(pool_->size()) {
    Scratch most;
    for (const Op& op : ops_) {
        const Scratch scratch = std::visit([&](const auto& any) { return scratch_of(any, pool_->size()); }, op);
        most.shared = std::max(most.shared, scratch.shared);
        most.own = std::max(most.own, scratch.own);
        most.counters = std::max(most.counters, scratch.counters);
    }
    // Lanes write side by side: a page between them keeps their lines and prefetchers apart.
    own_bytes_ = static_cast<std::size_t>(round_up(static_cast<std::int64_t>(most.own), 4096));
    shared_ = allocator.allocate(most.shared);
    counters_ = std::vector<Counter>(most.counters);
    own_ = allocator.allocate(own_bytes_ * static_cast<std::size_t>(pool_->size()));
}

void ListProgram::run() {
    for (Tickets& tickets : tickets_) tickets.next.store(0, std::memory_order_relaxed);
    auto lane = [this](int index) { run_lane(index); };
    pool_->run(lane);
}

void ListProgram::run_lane(int index) {
    std::byte* own = own_->data() + own_bytes_ * static_cast<std::size_t>(index);
    for (std::size_t i = 0; i < ops_.size(); ++i) {
        if (i != 0) barrier_.wait();
        const Lane lane{index,           pool_->size(), &tickets_[i * lanes()], &barrier_,
                        shared_->data(), own,           counters_.data()};
        std::visit([&](const auto& op) { FERMI_ISA::run(op, lane); }, ops_[i]);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
