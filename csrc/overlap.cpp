// Interval arithmetic on views.
#include "overlap.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace fermi {
namespace {

struct Span {
    std::int64_t first;  // bytes; `end` is one past the last
    std::int64_t end;
};

/// The bytes that `tensor` spans, relative to its storage; axes before `from` held at 0.
Span span_of(const Tensor& tensor, int from) {
    const auto size = static_cast<std::int64_t>(size_of(tensor.dtype()));
    Span span{static_cast<std::int64_t>(tensor.offset()), static_cast<std::int64_t>(tensor.offset()) + size};
    for (int axis = from; axis < tensor.rank(); ++axis) {
        const std::int64_t reach = (tensor.size(axis) - 1) * tensor.stride(axis) * size;
        (reach < 0 ? span.first : span.end) += reach;
    }
    return span;
}

/// Different storages may be views of the same memory (NumPy arrays): compares addresses where there are any.
std::int64_t distance(const Tensor& a, const Tensor& b) {
    return static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(b.storage()->data()) -
                                     reinterpret_cast<std::intptr_t>(a.storage()->data()));
}

bool comparable(const Tensor& a, const Tensor& b) {
    if (!a.defined() || !b.defined() || a.elements() == 0 || b.elements() == 0) return false;
    if (a.storage() == b.storage()) return true;
    return a.device() == b.device() && a.storage()->data() != nullptr && b.storage()->data() != nullptr;
}

/// Both repeat with the same pitch along `axis`, and by multiples of it along the axes before, and lie apart within it.
bool apart_along(const Tensor& a, const Tensor& b, int axis) {
    const auto bytes = [](const Tensor& tensor, int at) {
        return tensor.stride(at) * static_cast<std::int64_t>(size_of(tensor.dtype()));
    };
    const std::int64_t pitch = bytes(a, axis);
    if (pitch <= 0 || pitch != bytes(b, axis)) return false;
    for (int before = 0; before < axis; ++before) {
        if (bytes(a, before) % pitch != 0 || bytes(b, before) % pitch != 0) return false;
    }
    const Span first = span_of(a, axis + 1);
    const Span second = span_of(b, axis + 1);
    const std::int64_t lead = ((second.first + distance(a, b) - first.first) % pitch + pitch) % pitch;
    return lead >= first.end - first.first && lead + (second.end - second.first) <= pitch;
}

}  // namespace

bool same_range(const Tensor& a, const Tensor& b) {
    if (!comparable(a, b)) return false;
    const Span first = span_of(a, 0);
    const Span second = span_of(b, 0);
    const std::int64_t shift = distance(a, b);
    return first.first < second.end + shift && second.first + shift < first.end;
}

bool overlap(const Tensor& a, const Tensor& b) {
    if (!same_range(a, b)) return false;
    for (int axis = 0; axis < std::min(a.rank(), b.rank()) - 1; ++axis) {
        if (apart_along(a, b, axis)) return false;
    }
    return true;
}

bool overlaps_itself(const Tensor& tensor) {
    if (!tensor.defined() || tensor.elements() == 0) return false;
    std::vector<std::pair<std::int64_t, std::int64_t>> axes;  // |stride|, extent
    for (int axis = 0; axis < tensor.rank(); ++axis) {
        const std::int64_t stride = tensor.stride(axis);
        if (tensor.size(axis) > 1) axes.emplace_back(stride < 0 ? -stride : stride, tensor.size(axis));
    }
    std::sort(axes.begin(), axes.end());
    std::int64_t reach = 0;  // elements from the first to the last of the axes so far
    for (const auto& [stride, extent] : axes) {
        if (stride <= reach) return true;
        reach += (extent - 1) * stride;
    }
    return false;
}

}  // namespace fermi
