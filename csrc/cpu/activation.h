// Activation functions of feed-forward layers.
#pragma once

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
    }
}

}  // namespace fermi::cpu::FERMI_ISA
