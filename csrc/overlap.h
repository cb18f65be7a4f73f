// Whether views share memory: ops refuse operands that would read what they write.
#pragma once

#include "export.h"
#include "tensor.h"

namespace fermi {

/// The spans from first to last byte meet.
FERMI_API bool same_range(const Tensor& a, const Tensor& b);

/// Some byte belongs to both. Exact for rows side by side, such as q, k and v within one projection's output, and for
/// heads side by side within a row; for other interleaved views it errs on the side of yes.
FERMI_API bool overlap(const Tensor& a, const Tensor& b);

/// Some byte belongs to two elements (a broadcast axis), or might.
FERMI_API bool overlaps_itself(const Tensor& tensor);

}  // namespace fermi
