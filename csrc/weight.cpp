// Checks of weights.
#include "weight.h"

#include <utility>

namespace fermi {

Weight Weight::dense(Tensor data) {
    require(data.defined(), "weight: there is no data");
    require(is_float(data.dtype()), "weight: the dtype must be f32, f16 or bf16, not ", data.dtype());
    require(data.rank() == 2, "weight: the shape must be [rows, columns], not ", data.shape());
    require(data.stride(1) == 1 || data.size(1) <= 1, "weight: rows must be contiguous, the strides are ",
            data.strides());
    return {WeightFormat::dense, std::move(data)};
}

std::ostream& operator<<(std::ostream& stream, const Weight& weight) {
    return stream << weight.data;
}

}  // namespace fermi
