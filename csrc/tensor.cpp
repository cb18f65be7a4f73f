// Views: bounds, shapes and strides.
#include "tensor.h"

#include <algorithm>
#include <utility>

namespace fermi {
namespace {

constexpr std::int64_t largest_tensor = std::int64_t{1} << 62;  // bytes: keeps every product below in range

int checked_axis(const char* method, int axis, int rank) {
    require(axis >= -rank && axis < rank, method, ": there is no axis ", axis, " in rank ", rank);
    return axis < 0 ? axis + rank : axis;
}

/// Replaces the one -1 among `sizes` so that their product is `elements`.
Dims inferred(const char* method, Dims sizes, std::int64_t elements) {
    int unknown = -1;
    std::int64_t known = 1;
    for (int axis = 0; axis < sizes.rank(); ++axis) {
        const std::int64_t size = sizes[axis];
        if (size == -1) {
            require(unknown < 0, method, ": more than one size of ", sizes, " is -1");
            unknown = axis;
        } else {
            require(size >= 0, method, ": the sizes ", sizes, " have a negative one");
            require(!__builtin_mul_overflow(known, size, &known), method, ": the sizes ", sizes, " are too large");
        }
    }
    if (unknown >= 0) {
        require(known > 0 && elements % known == 0, method, ": ", elements, " elements do not divide into ", sizes);
        sizes[unknown] = elements / known;
        known = elements;
    }
    require(known == elements, method, ": ", elements, " elements do not fit ", sizes);
    return sizes;
}

/// Dims of `dims` with the axis replaced by those of `replacement`.
Dims replaced(const Dims& dims, int axis, const Dims& replacement) {
    std::vector<std::int64_t> values(dims.begin(), dims.begin() + axis);
    values.insert(values.end(), replacement.begin(), replacement.end());
    values.insert(values.end(), dims.begin() + axis + 1, dims.end());
    return Dims(values);
}

}  // namespace

Dims::Dims(std::span<const std::int64_t> values) : rank_(static_cast<int>(values.size())) {
    require(values.size() <= max_rank, "tensor: rank ", values.size(), " is above ", max_rank);
    std::copy(values.begin(), values.end(), values_.begin());
}

bool Dims::operator==(const Dims& other) const {
    return std::equal(begin(), end(), other.begin(), other.end());
}

std::ostream& operator<<(std::ostream& stream, const Dims& dims) {
    stream << '[';
    for (int axis = 0; axis < dims.rank(); ++axis) stream << (axis == 0 ? "" : ", ") << dims[axis];
    return stream << ']';
}

Dims contiguous_strides(const Dims& shape) {
    Dims strides = shape;
    std::int64_t stride = 1;
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
        strides[axis] = stride;
        stride *= std::max<std::int64_t>(shape[axis], 1);
    }
    return strides;
}

std::size_t contiguous_bytes(DType dtype, const Dims& shape) {
    const auto size = static_cast<std::int64_t>(size_of(dtype));
    std::int64_t bytes = size;  // extents of 0 counted as 1, so that no order of multiplication overflows
    bool empty = false;
    for (const std::int64_t extent : shape) {
        require(extent >= 0, "tensor: the shape ", shape, " has a negative extent");
        empty = empty || extent == 0;
        const std::int64_t factor = std::max<std::int64_t>(extent, 1);
        require(bytes <= largest_tensor / factor, "tensor: the shape ", shape, " is too large");
        bytes *= factor;
    }
    return empty ? 0 : static_cast<std::size_t>(bytes);
}

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, Dims shape, Dims strides, std::size_t offset,
               std::shared_ptr<void> lease)
    : storage_(std::move(storage)),
      lease_(std::move(lease)),
      shape_(shape),
      strides_(strides),
      offset_(offset),
      dtype_(dtype) {
    require(storage_ != nullptr, "tensor: there is no storage");
    require(shape_.rank() == strides_.rank(), "tensor: ", shape_, " and the strides ", strides_, " differ in rank");
    contiguous_bytes(dtype_, shape_);
    const std::size_t bytes = storage_->bytes();
    require(offset_ <= bytes, "tensor: the offset ", offset_, " is beyond the storage of ", bytes, " bytes");
    const auto size = static_cast<std::int64_t>(size_of(dtype_));
    const auto address = reinterpret_cast<std::uintptr_t>(storage_->data()) + offset_;
    require(address % static_cast<std::uintptr_t>(size) == 0, "tensor: the address is not a multiple of ", size,
            ", the size of ", dtype_);
    if (elements() == 0) return;

    std::int64_t first = 0;  // elements before and after the first one
    std::int64_t last = 0;
    for (int axis = 0; axis < rank(); ++axis) {
        std::int64_t reach = 0;
        std::int64_t& side = strides_[axis] < 0 ? first : last;
        const bool overflow = __builtin_mul_overflow(shape_[axis] - 1, strides_[axis], &reach) ||
                              __builtin_add_overflow(side, reach, &side);
        require(!overflow, "tensor: the strides ", strides_, " are too large");
    }
    const bool inside = last < largest_tensor / size && first > -largest_tensor / size &&
                        static_cast<std::uint64_t>(-first * size) <= offset_ &&
                        static_cast<std::uint64_t>((last + 1) * size) <= bytes - offset_;
    require(inside, "tensor: ", shape_, " with strides ", strides_, " at byte ", offset_, " leaves the storage of ",
            bytes, " bytes");
}

Tensor Tensor::empty(DType dtype, const Dims& shape) {
    return {heap_storage(contiguous_bytes(dtype, shape)), dtype, shape, contiguous_strides(shape), 0};
}

std::int64_t Tensor::elements() const {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape_) count *= extent;
    return count;
}

bool Tensor::contiguous() const {
    if (elements() == 0) return true;
    std::int64_t stride = 1;
    for (int axis = rank() - 1; axis >= 0; --axis) {
        if (shape_[axis] == 1) continue;
        if (strides_[axis] != stride) return false;
        stride *= shape_[axis];
    }
    return true;
}

Tensor Tensor::narrow(int axis, std::int64_t start, std::int64_t length) const {
    require(defined(), "narrow: the tensor is empty");
    axis = checked_axis("narrow", axis, rank());
    const std::int64_t extent = shape_[axis];
    require(start >= 0 && length >= 0 && start <= extent && length <= extent - start, "narrow: ", start, " + ", length,
            " is outside the axis of ", extent);
    Tensor view = *this;
    view.shape_[axis] = length;
    if (view.elements() > 0) {
        const std::int64_t bytes = start * strides_[axis] * static_cast<std::int64_t>(size_of(dtype_));
        view.offset_ = static_cast<std::size_t>(static_cast<std::int64_t>(offset_) + bytes);
    }
    return view;
}

Tensor Tensor::unflatten(int axis, const Dims& sizes) const {
    require(defined(), "unflatten: the tensor is empty");
    axis = checked_axis("unflatten", axis, rank());
    const Dims inner = inferred("unflatten", sizes, shape_[axis]);
    Dims inner_strides = contiguous_strides(inner);
    for (int each = 0; each < inner.rank(); ++each) inner_strides[each] *= strides_[axis];
    Tensor view = *this;
    view.shape_ = replaced(shape_, axis, inner);
    view.strides_ = replaced(strides_, axis, inner_strides);
    contiguous_bytes(dtype_, view.shape_);
    return view;
}

Tensor Tensor::reshape(const Dims& shape) const {
    require(defined(), "reshape: the tensor is empty");
    require(contiguous(), "reshape: the tensor is not contiguous: ", shape_, " with strides ", strides_);
    Tensor view = *this;
    view.shape_ = inferred("reshape", shape, elements());
    contiguous_bytes(dtype_, view.shape_);
    view.strides_ = contiguous_strides(view.shape_);
    return view;
}

Tensor Tensor::transpose(int first, int second) const {
    require(defined(), "transpose: the tensor is empty");
    first = checked_axis("transpose", first, rank());
    second = checked_axis("transpose", second, rank());
    Tensor view = *this;
    std::swap(view.shape_[first], view.shape_[second]);
    std::swap(view.strides_[first], view.strides_[second]);
    return view;
}

Tensor Tensor::without_lease() const {
    Tensor view = *this;
    view.lease_ = nullptr;
    return view;
}

std::ostream& operator<<(std::ostream& stream, const Tensor& tensor) {
    if (!tensor.defined()) return stream << "none";
    return stream << tensor.dtype() << tensor.shape();
}

}  // namespace fermi
