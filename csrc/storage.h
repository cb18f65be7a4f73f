// A span of memory on one device, released when its last tensor goes.
#pragma once

#include <cstddef>
#include <memory>

#include "device.h"
#include "export.h"

namespace fermi {

/// Base of what can own bytes: a backend's allocation, an mmapped file, a NumPy array, an arena.
class FERMI_API Storage {
  public:
    Storage(std::byte* data, std::size_t bytes, Device device) : data_(data), bytes_(bytes), device_(device) {}
    virtual ~Storage();
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;

    std::byte* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }
    Device device() const { return device_; }

    /// False for memory that must not be written: mapped checkpoints, read-only NumPy arrays.
    virtual bool writable() const { return true; }

  protected:
    /// For storage whose memory comes after its tensors (an arena while recording).
    void bind(std::byte* data, std::size_t bytes) {
        data_ = data;
        bytes_ = bytes;
    }

  private:
    std::byte* data_;
    std::size_t bytes_;
    Device device_;
};

/// Fresh memory of the CPU, 64-byte aligned, not initialised. Throws OutOfMemory.
FERMI_API std::shared_ptr<Storage> heap_storage(std::size_t bytes);

}  // namespace fermi
