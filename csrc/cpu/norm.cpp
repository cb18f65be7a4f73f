// Root-mean-square normalization (arXiv 1910.07467).
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Σ x², four accumulators along the row: an order that depends on n only.
float sum_of_squares(const float* x, std::int64_t n) {
    constexpr int unroll = 4;
    Vec sums[unroll] = {zero(), zero(), zero(), zero()};
    std::int64_t i = 0;
    for (; i + unroll * Vec::width <= n; i += unroll * Vec::width) {
        for (int u = 0; u < unroll; ++u) {
            const Vec value = load(x + i + u * Vec::width);
            sums[u] = fma(value, value, sums[u]);
        }
    }
    for (; i + Vec::width <= n; i += Vec::width) {
        const Vec value = load(x + i);
        sums[0] = fma(value, value, sums[0]);
    }
    if (i < n) {
        const Vec value = load_partial(x + i, static_cast<int>(n - i));
        sums[1] = fma(value, value, sums[1]);
    }
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void normalize(float* out, const float* x, const T* weight, std::int64_t n, float epsilon) {
    const float mean = sum_of_squares(x, n) / static_cast<float>(n);
    const Vec inverse = broadcast(1.0F / std::sqrt(mean + epsilon));
    std::int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) store(out + i, load(x + i) * inverse * load(weight + i));
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        store_partial(out + i, load_partial(x + i, rest) * inverse * load_partial(weight + i, rest), rest);
    }
}

void add(float* to, const float* x, std::int64_t n) {
    std::int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) store(to + i, load(to + i) + load(x + i));
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        store_partial(to + i, load_partial(to + i, rest) + load_partial(x + i, rest), rest);
    }
}

}  // namespace

void run(const RmsNorm& op, const Lane& lane) {
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

void run(const AddRmsNorm& op, const Lane& lane) {
    const std::int64_t dim = op.x.size(1);
    const Range rows = lane.share(op.x.size(0));
    with_float(op.weight.dtype(), [&]<class T>(T) {
        for (std::int64_t r = rows.begin; r < rows.end; ++r) {
            float* residual = op.residual.data<float>() + r * op.residual.stride(0);
            add(residual, op.x.data<float>() + r * op.x.stride(0), dim);
            normalize(op.out.data<float>() + r * op.out.stride(0), residual, op.weight.data<T>(), dim, op.epsilon);
        }
    });
}

}  // namespace fermi::cpu::FERMI_ISA
