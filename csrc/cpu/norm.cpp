// Norms as ops of their own.
#include "cpu/norm.h"

#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Row `row` of [tokens, dim] or [tokens, heads, dim].
float* row_of(const Tensor& tensor, std::int64_t row) {
    if (tensor.rank() == 2) return tensor.data<float>() + row * tensor.stride(0);
    const std::int64_t heads = tensor.size(1);
    return tensor.data<float>() + row / heads * tensor.stride(0) + row % heads * tensor.stride(1);
}

}  // namespace

void run(const Norm& op, const Lane& lane) {
    const std::int64_t rows = op.x.rank() == 2 ? op.x.size(0) : op.x.size(0) * op.x.size(1);
    const RowNorm norm{op.weight, op.bias, op.kind, op.epsilon};
    const Range share = lane.share(rows);
    for (std::int64_t row = share.begin; row < share.end; ++row) {
        normalize(row_of(op.out, row), row_of(op.x, row), op.x.size(-1), norm, op.add);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
