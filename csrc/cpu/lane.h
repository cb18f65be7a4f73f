// What a kernel knows of the threads that run it together.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "thread_pool.h"

namespace fermi::cpu::FERMI_ISA {

/// [begin, end)
struct Range {
    std::int64_t begin;
    std::int64_t end;

    std::int64_t size() const { return end - begin; }
};

/// Hands out items, one after the other. A cache line of its own.
struct alignas(64) Tickets {
    std::atomic<std::int64_t> next{0};
};

/// Memory an op needs besides its tensors, in bytes; known when it is lowered.
struct Scratch {
    std::size_t shared = 0;    ///< seen by all lanes
    std::size_t own = 0;       ///< of each lane
    std::size_t counters = 0;  ///< a number of counters, zero when the op begins; it must leave them zero
};

using Counter = std::atomic<std::int64_t>;

/// One of the `count` threads that run an op together. A kernel's result may not depend on which lane does what.
struct Lane {
    int index;
    int count;
    Tickets* tickets;  // of the op: one for each lane
    Barrier* barrier;
    std::byte* shared;            // Scratch::shared bytes, 64-byte aligned
    std::byte* own;               // Scratch::own bytes, 64-byte aligned
    Counter* counters = nullptr;  // Scratch::counters

    /// The next item of the op that nobody has taken.
    std::int64_t take() const { return tickets->next.fetch_add(1, std::memory_order_relaxed); }
    /// One of `total` items that nobody has taken: of this lane's own share while there are such, so that what it takes
    /// lies side by side in memory, then of the others' shares; `total` when there is none. An op takes in one way
    /// only.
    std::int64_t take_near(std::int64_t total) const {
        for (int i = 0; i < count; ++i) {
            const int owner = (index + i) % count;
            const Range items{total * owner / count, total * (owner + 1) / count};
            std::atomic<std::int64_t>& next = tickets[owner].next;
            if (next.load(std::memory_order_relaxed) >= items.size()) continue;
            const std::int64_t item = next.fetch_add(1, std::memory_order_relaxed);
            if (item < items.size()) return items.begin + item;
        }
        return total;
    }
    /// This lane's share of `total` items, in whole grains.
    Range share(std::int64_t total, std::int64_t grain = 1) const {
        const std::int64_t grains = (total + grain - 1) / grain;
        return {std::min(total, grains * index / count * grain), std::min(total, grains * (index + 1) / count * grain)};
    }
    /// Returns when every lane has come here.
    void wait() const { barrier->wait(); }
};

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

/// A size of memory, to whole cache lines.
constexpr std::size_t round_up_size(std::size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/// Bytes of `count` floats, padded so that what follows is 64-byte aligned.
constexpr std::size_t float_bytes(std::int64_t count) {
    return static_cast<std::size_t>(round_up(count * static_cast<std::int64_t>(sizeof(float)), 64));
}

}  // namespace fermi::cpu::FERMI_ISA
