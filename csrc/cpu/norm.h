// Normalization of a row: root mean square (arXiv 1910.07467) and layer (arXiv 1607.06450).
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/simd.h"
#include "cpu/vectors.h"
#include "ops.h"

namespace fermi::cpu::FERMI_ISA {

/// What an op has of a norm.
struct RowNorm {
    const Tensor& weight;
    const Tensor& bias;  // perhaps undefined
    NormKind kind;
    float epsilon;
};

/// Σ x²
inline float sum_of_squares(const float* x, std::int64_t n) {
    return reduce(x, n, [](Vec sum, Vec value, int) { return fma(value, value, sum); });
}

/// Mean and variance of a row. The variance comes from a second pass over it: the difference of two large means has
/// lost its digits.
struct Moments {
    float mean;
    float variance;

    Moments(const float* x, std::int64_t n)
        : mean(reduce(x, n, [](Vec sum, Vec value, int) { return sum + value; }) / static_cast<float>(n)) {
        float means[Vec::width];
        store(means, broadcast(mean));
        const float squares = reduce(x, n, [&](Vec sum, Vec value, int count) {
            const Vec difference = value - (count == Vec::width ? broadcast(mean) : load_partial(means, count));
            return fma(difference, difference, sum);
        });
        variance = squares / static_cast<float>(n);
    }
};

/// out = norm(x); with `add`, out += norm(x). `out` may be x.
inline void normalize(float* out, const float* x, std::int64_t n, const RowNorm& norm, bool add = false) {
    float mean = 0.0F, spread = 0.0F;  // what is subtracted; mean square of what is left
    if (norm.kind == NormKind::layer) {
        const Moments moments(x, n);
        mean = moments.mean;
        spread = moments.variance;
    } else {
        spread = sum_of_squares(x, n) / static_cast<float>(n);
    }
    const Vec shift = broadcast(mean), inverse = broadcast(1.0F / std::sqrt(spread + norm.epsilon));
    const auto write = [&](const auto& get, const auto& put, Vec value) { put(out, add ? get(out) + value : value); };
    with_float(norm.weight.dtype(), [&]<class T>(T) {
        const T* weight = norm.weight.data<T>();
        if (!norm.bias.defined()) {
            return for_vectors(n, [&](const auto& get, const auto& put) {
                write(get, put, (get(x) - shift) * inverse * get(weight));
            });
        }
        with_float(norm.bias.dtype(), [&]<class B>(B) {
            const B* bias = norm.bias.data<B>();
            for_vectors(n, [&](const auto& get, const auto& put) {
                write(get, put, fma((get(x) - shift) * inverse, get(weight), get(bias)));
            });
        });
    });
}

}  // namespace fermi::cpu::FERMI_ISA
