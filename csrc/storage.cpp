// Memory of the CPU that belongs to no backend.
#include "storage.h"

#include <algorithm>
#include <cstdlib>

#include "error.h"

namespace fermi {
namespace {

constexpr std::size_t alignment = 64;

class HeapStorage final : public Storage {
  public:
    /// Takes over memory of std::aligned_alloc.
    HeapStorage(void* data, std::size_t bytes) : Storage(static_cast<std::byte*>(data), bytes, Device{}) {}
    ~HeapStorage() override { std::free(data()); }
};

}  // namespace

Storage::~Storage() = default;

std::shared_ptr<Storage> heap_storage(std::size_t bytes) {
    const std::size_t capacity = std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
    void* data = capacity >= bytes ? std::aligned_alloc(alignment, capacity) : nullptr;
    if (data == nullptr) throw OutOfMemory(message("cannot allocate ", bytes, " bytes"));
    try {
        return std::make_shared<HeapStorage>(data, bytes);
    } catch (...) {
        std::free(data);
        throw;
    }
}

}  // namespace fermi
