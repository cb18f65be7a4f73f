// Activation functions of feed-forward layers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/simd.h"
#include "cpu/simd/math.h"
#include "ops.h"

namespace fermi::cpu::FERMI_ISA {

struct Silu {
    static FERMI_INLINE Vec apply(Vec x) { return x / (broadcast(1.0F) + exp(zero() - x)); }
};
/// x Φ(x)
struct Gelu {
    static FERMI_INLINE Vec apply(Vec x) {
        return broadcast(0.5F) * x * (broadcast(1.0F) + erf(x * broadcast(0.70710678F)));
    }
};
/// Its approximation by tanh (arXiv 1606.08415).
struct GeluTanh {
    static FERMI_INLINE Vec apply(Vec x) {
        const Vec inner = broadcast(0.79788456F) * fma(broadcast(0.044715F) * x * x, x, x);
        return broadcast(0.5F) * x * (broadcast(1.0F) + tanh(inner));
    }
};
struct Relu {
    static FERMI_INLINE Vec apply(Vec x) { return maximum(zero(), x); }
};
struct Tanh {
    static FERMI_INLINE Vec apply(Vec x) { return tanh(x); }
};
struct Sigmoid {
    static FERMI_INLINE Vec apply(Vec x) { return broadcast(1.0F) / (broadcast(1.0F) + exp(zero() - x)); }
};

/// Calls visitor(Function{}) with the function of that name.
template <class Visitor>
void with_activation(Activation activation, Visitor&& visitor) {
    switch (activation) {
        case Activation::silu:
            return visitor(Silu{});
        case Activation::gelu:
            return visitor(Gelu{});
        case Activation::gelu_tanh:
            return visitor(GeluTanh{});
        case Activation::relu:
            return visitor(Relu{});
        case Activation::tanh:
            return visitor(Tanh{});
        case Activation::sigmoid:
            return visitor(Sigmoid{});
    }
}

/// to = f(y), or f(y) · other; added to what is there, or in its place.
template <class Function>
void activate(const float* y, const float* other, float* to, std::int64_t n, bool add) {
    for (std::int64_t i = 0; i < n; i += Vec::width) {
        const int count = static_cast<int>(std::min<std::int64_t>(Vec::width, n - i));
        const auto part = [&](const float* from) {
            return count == Vec::width ? load(from + i) : load_partial(from + i, count);
        };
        Vec value = Function::apply(part(y));
        if (other != nullptr) value = value * part(other);
        if (add) value = part(to) + value;
        count == Vec::width ? store(to + i, value) : store_partial(to + i, value, count);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
