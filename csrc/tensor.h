// A strided view over storage. It carries no arithmetic: ops do that.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <ostream>
#include <span>
#include <vector>

#include "device.h"
#include "dtype.h"
#include "error.h"
#include "export.h"
#include "storage.h"

namespace fermi {

/// Up to six extents, or strides in elements, held in place.
class FERMI_API Dims {
  public:
    static constexpr int max_rank = 6;

    Dims() = default;
    Dims(std::initializer_list<std::int64_t> values) : Dims(std::span(values.begin(), values.size())) {}
    /// Throws InvalidArgument above max_rank.
    explicit Dims(std::span<const std::int64_t> values);

    int rank() const { return rank_; }
    std::int64_t operator[](int axis) const { return values_[static_cast<std::size_t>(axis)]; }
    std::int64_t& operator[](int axis) { return values_[static_cast<std::size_t>(axis)]; }
    const std::int64_t* begin() const { return values_.data(); }
    const std::int64_t* end() const { return values_.data() + rank_; }
    bool operator==(const Dims& other) const;

  private:
    std::array<std::int64_t, max_rank> values_{};
    int rank_ = 0;
};

/// "[2, 3]"
FERMI_API std::ostream& operator<<(std::ostream& stream, const Dims& dims);

class FERMI_API Tensor {
  public:
    Tensor() = default;
    /// A view of `storage`: strides in elements, offset in bytes. Throws InvalidArgument if it would leave the storage
    /// or its address does not suit the dtype. `lease` is kept alive as long as any view of it.
    Tensor(std::shared_ptr<Storage> storage, DType dtype, Dims shape, Dims strides, std::size_t offset,
           std::shared_ptr<void> lease = nullptr);

    /// Fresh memory on the CPU, contiguous, 64-byte aligned, not initialised.
    static Tensor empty(DType dtype, const Dims& shape);

    bool defined() const { return storage_ != nullptr; }
    DType dtype() const { return dtype_; }
    const Dims& shape() const { return shape_; }
    const Dims& strides() const { return strides_; }
    int rank() const { return shape_.rank(); }
    std::int64_t size(int axis) const { return shape_[axis < 0 ? axis + rank() : axis]; }
    std::int64_t stride(int axis) const { return strides_[axis < 0 ? axis + rank() : axis]; }
    std::int64_t elements() const;
    std::size_t bytes() const { return static_cast<std::size_t>(elements()) * size_of(dtype_); }
    Device device() const { return storage_ ? storage_->device() : Device{}; }
    const std::shared_ptr<Storage>& storage() const { return storage_; }
    std::size_t offset() const { return offset_; }
    bool contiguous() const;
    bool writable() const { return storage_ && storage_->writable(); }

    /// Address of the first element. Unchecked: ops have checked the dtype at their front door.
    template <class T>
    T* data() const {
        return reinterpret_cast<T*>(storage_->data() + offset_);
    }
    std::byte* bytes_data() const { return storage_->data() + offset_; }

    // Views; all throw InvalidArgument when they do not fit.
    Tensor narrow(int axis, std::int64_t start, std::int64_t length) const;
    /// [.., n, ..] → [.., a, b, ..] with a·b = n; one of them may be -1.
    Tensor unflatten(int axis, const Dims& sizes) const;
    /// New shape over the same elements; needs contiguous memory.
    Tensor reshape(const Dims& shape) const;
    Tensor transpose(int first, int second) const;

    /// The same view without the lease on arena memory: what a recorded op keeps.
    Tensor without_lease() const;

  private:
    std::shared_ptr<Storage> storage_;
    std::shared_ptr<void> lease_;
    Dims shape_;
    Dims strides_;
    std::size_t offset_ = 0;
    DType dtype_ = DType::f32;
};

/// Strides, in elements, of a contiguous row-major tensor.
FERMI_API Dims contiguous_strides(const Dims& shape);
/// Bytes of a contiguous tensor. Throws InvalidArgument for negative extents and sizes beyond any memory.
FERMI_API std::size_t contiguous_bytes(DType dtype, const Dims& shape);

/// "f32[2, 3]"
FERMI_API std::ostream& operator<<(std::ostream& stream, const Tensor& tensor);

}  // namespace fermi
