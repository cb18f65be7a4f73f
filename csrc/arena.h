// The memory plan of a recording: ranges leased while tensors over them live, reused afterwards.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

#include "export.h"
#include "storage.h"

namespace fermi {

/// Reference counting is the memory planner: a range is taken when an op allocates its output, and returns when the
/// last tensor over it goes while the recording is still being described. Memory comes at the end of the description,
/// all of it at once; until then tensors over the arena have bounds but no address.
class FERMI_API Arena final : public Storage {
  public:
    static constexpr std::size_t alignment = 64;

    explicit Arena(Device device) : Storage(nullptr, 0, device) {}

    struct Range {
        std::size_t offset;
        std::shared_ptr<void> lease;  ///< gives the range back when the last copy goes
    };

    /// Takes the smallest free range that fits, or grows the arena. Throws OutOfMemory when sizes overflow.
    static Range take(const std::shared_ptr<Arena>& arena, std::size_t bytes);

    /// Ends the plan and lends the arena its memory: at least bytes() of it. Leases given back from now on change
    /// nothing.
    void seal(std::shared_ptr<Storage> memory);

  private:
    using Storage::bind;
    void give_back(std::size_t offset, std::size_t size);

    std::mutex mutex_;                         // tensors may die on any thread
    std::map<std::size_t, std::size_t> free_;  // offset → size; neighbours are merged
    std::shared_ptr<Storage> memory_;
};

}  // namespace fermi
