// Memory of the CPU that belongs to no backend.
#include "storage.h"

#include <new>

#include "error.h"

namespace fermi {
namespace {

constexpr std::align_val_t alignment{64};

class HeapStorage final : public Storage {
  public:
    explicit HeapStorage(std::size_t bytes)
        : Storage(static_cast<std::byte*>(::operator new(bytes, alignment)), bytes, Device{}) {}
    ~HeapStorage() override { ::operator delete(data(), alignment); }
};

}  // namespace

Storage::~Storage() = default;

std::shared_ptr<Storage> heap_storage(std::size_t bytes) {
    try {
        return std::make_shared<HeapStorage>(bytes);
    } catch (const std::bad_alloc&) {
        throw OutOfMemory(message("cannot allocate ", bytes, " bytes"));
    }
}

}  // namespace fermi
