#include "cpu/allocator.h"

#include <cstdlib>
#include <new>

#include "error.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fermi::cpu::FERMI_ISA {

namespace {

constexpr std::size_t huge_page = std::size_t{2} << 20;

/// Capacities are rounded so that requests of nearly equal size share blocks: to 64 bytes, above 2 MiB to 2 MiB.
std::size_t capacity_for(std::size_t bytes) {
    const std::size_t unit = bytes >= huge_page ? huge_page : Allocator::alignment;
    if (bytes > SIZE_MAX - unit) throw OutOfMemory(message("cpu: cannot allocate ", bytes, " bytes"));
    return bytes == 0 ? unit : (bytes + unit - 1) / unit * unit;
}

}  // namespace

/// A block on loan.
class Allocator::Block : public Storage {
  public:
    Block(std::shared_ptr<Allocator> owner, std::byte* data, std::size_t bytes, std::size_t capacity)
        : Storage(data, bytes, Device{}), owner_(std::move(owner)), capacity_(capacity) {}
    ~Block() override { owner_->release(data(), capacity_); }

  private:
    std::shared_ptr<Allocator> owner_;
    std::size_t capacity_;
};

Allocator::~Allocator() {
    for (const auto& [capacity, data] : cached_) std::free(data);
}

std::shared_ptr<Storage> Allocator::allocate(std::size_t bytes) {
    std::size_t capacity = capacity_for(bytes);
    std::byte* data = take(bytes, capacity);
    try {
        return std::make_shared<Block>(shared_from_this(), data, bytes, capacity);
    } catch (const std::bad_alloc&) {
        release(data, capacity);
        throw OutOfMemory(message("cpu: cannot allocate ", bytes, " bytes"));
    }
}

std::byte* Allocator::take(std::size_t bytes, std::size_t& capacity) {
    {
        const std::lock_guard lock(mutex_);
        const auto found = cached_.lower_bound(capacity);
        if (found != cached_.end() && found->first - capacity <= capacity / 4) {
            std::byte* data = found->second;
            capacity = found->first;
            cached_bytes_ -= capacity;
            cached_.erase(found);
            return data;
        }
    }
    void* data = std::aligned_alloc(capacity >= huge_page ? huge_page : alignment, capacity);
    if (data == nullptr) throw OutOfMemory(message("cpu: cannot allocate ", bytes, " bytes"));
#if defined(__linux__)
    if (capacity >= huge_page) madvise(data, capacity, MADV_HUGEPAGE);  // a hint: fewer TLB misses over caches
#endif
    return static_cast<std::byte*>(data);
}

void Allocator::release(std::byte* data, std::size_t capacity) noexcept {
    const std::lock_guard lock(mutex_);
    if (capacity > cache_limit) return std::free(data);
    while (cached_bytes_ + capacity > cache_limit) {  // the largest go first
        const auto last = std::prev(cached_.end());
        cached_bytes_ -= last->first;
        std::free(last->second);
        cached_.erase(last);
    }
    try {
        cached_.emplace(capacity, data);
        cached_bytes_ += capacity;
    } catch (const std::bad_alloc&) {
        std::free(data);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
