// Best-fit planning of an arena.
#include "arena.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "error.h"

namespace fermi {

Arena::Range Arena::take(const std::shared_ptr<Arena>& arena, std::size_t bytes) {
    constexpr std::size_t largest = std::size_t{1} << 62;
    if (bytes > largest) throw OutOfMemory(message("cannot plan for a tensor of ", bytes, " bytes"));
    const std::size_t size = std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
    std::size_t offset = 0;
    {
        const std::lock_guard lock(arena->mutex_);
        auto best = arena->free_.end();
        for (auto range = arena->free_.begin(); range != arena->free_.end(); ++range) {
            if (range->second >= size && (best == arena->free_.end() || range->second < best->second)) best = range;
        }
        if (best != arena->free_.end()) {
            offset = best->first;
            const std::size_t rest = best->second - size;
            arena->free_.erase(best);
            if (rest > 0) arena->free_.emplace(offset + size, rest);
        } else {
            // Grow by what the free range at the end, if there is one, lacks.
            offset = arena->bytes();
            if (!arena->free_.empty()) {
                const auto last = std::prev(arena->free_.end());
                if (last->first + last->second == offset) {
                    offset = last->first;
                    arena->free_.erase(last);
                }
            }
            if (offset > largest) throw OutOfMemory("cannot plan for that many tensors");
            arena->bind(nullptr, offset + size);
        }
    }
    // The deleter's own reference: a tensor may drop its storage before its lease.
    return {offset,
            std::shared_ptr<void>(arena.get(), [arena, offset, size](void*) { arena->give_back(offset, size); })};
}

void Arena::give_back(std::size_t offset, std::size_t size) {
    const std::lock_guard lock(mutex_);
    if (memory_ != nullptr) return;
    auto next = free_.lower_bound(offset);
    if (next != free_.end() && offset + size == next->first) {
        size += next->second;
        next = free_.erase(next);
    }
    if (next != free_.begin()) {
        const auto previous = std::prev(next);
        if (previous->first + previous->second == offset) {
            previous->second += size;
            return;
        }
    }
    free_.emplace(offset, size);
}

void Arena::seal(std::shared_ptr<Storage> memory) {
    const std::lock_guard lock(mutex_);
    require(memory != nullptr && memory->bytes() >= bytes(), "arena: too little memory");
    bind(memory->data(), bytes());
    memory_ = std::move(memory);
}

}  // namespace fermi
