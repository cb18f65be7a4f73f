// Memory of the CPU backend: aligned, and kept for the next one who asks.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

#include "storage.h"

namespace fermi::cpu::FERMI_ISA {

/// Aligned blocks. A released block waits for a request of about its size, up to `cache_limit` bytes in all: steps of
/// an engine ask for the same sizes again and again, and fresh pages cost a fault each. Safe from several threads.
class Allocator : public std::enable_shared_from_this<Allocator> {
  public:
    static constexpr std::size_t alignment = 64;
    static constexpr std::size_t cache_limit = std::size_t{128} << 20;

    Allocator() = default;
    ~Allocator();
    Allocator(const Allocator&) = delete;
    Allocator& operator=(const Allocator&) = delete;

    /// Not initialised. The storage keeps the allocator alive. Throws OutOfMemory.
    std::shared_ptr<Storage> allocate(std::size_t bytes);

  private:
    class Block;

    std::byte* take(std::size_t bytes, std::size_t& capacity);
    void release(std::byte* data, std::size_t capacity) noexcept;

    std::mutex mutex_;
    std::multimap<std::size_t, std::byte*> cached_;  // by capacity
    std::size_t cached_bytes_ = 0;
};

}  // namespace fermi::cpu::FERMI_ISA
