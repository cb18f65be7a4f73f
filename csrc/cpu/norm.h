// Root-mean-square normalization of a row (arXiv 1910.07467).
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

/// Σ x², four accumulators along the row: an order that depends on n only.
inline float sum_of_squares(const float* x, std::int64_t n) {
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

/// out = x / sqrt(mean(x²) + epsilon) · weight
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

}  // namespace fermi::cpu::FERMI_ISA
