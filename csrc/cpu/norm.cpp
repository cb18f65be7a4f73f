// Root-mean-square normalization as an op of its own.
#include "cpu/norm.h"

#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

void run(const Norm& op, const Lane& lane) {
    const bool by_head = op.x.rank() == 3;
    const std::int64_t dim = op.x.size(by_head ? 2 : 1);
    const std::int64_t inner = by_head ? op.x.size(1) : 1;  // rows per token
    const std::int64_t inner_stride = by_head ? op.x.stride(1) : 0;
    const Range rows = lane.share(op.x.size(0) * inner);
    with_float(op.weight.dtype(), [&]<class T>(T) {
        for (std::int64_t r = rows.begin; r < rows.end; ++r) {
            const float* x = op.x.data<float>() + r / inner * op.x.stride(0) + r % inner * inner_stride;
            normalize(op.out.data<float>() + r * dim, x, op.weight.data<T>(), dim, op.epsilon);
        }
    });
}

}  // namespace fermi::cpu::FERMI_ISA
