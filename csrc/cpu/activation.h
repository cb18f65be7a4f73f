// Activation functions of feed-forward layers, and what follows them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "cpu/simd.h"
#include "cpu/simd/math.h"
#include "ops.h"

namespace fermi::cpu::FERMI_ISA {

struct Identity {
    static FERMI_INLINE Vec apply(Vec x) { return x; }
};
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
    static FERMI_INLINE Vec apply(Vec x) { return sigmoid(x); }
};

/// Calls visitor(Function{}) with the function of that name; without a name, with the identity.
template <class Visitor>
void with_activation(std::optional<Activation> activation, Visitor&& visitor) {
    if (!activation.has_value()) return visitor(Identity{});
    switch (*activation) {
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

/// What becomes of results after an activation: z = scale · y, then soft_cap · tanh(z / soft_cap) where that is not 0;
/// added to what is there, or in its place.
struct Finish {
    float scale = 1.0F;
    float soft_cap = 0.0F;
    bool add = false;
};

/// to = f(y), or f(y) · other, finished.
template <class Function>
void activate(const float* y, const float* other, float* to, std::int64_t n, const Finish& finish) {
    const Vec scale = broadcast(finish.scale), cap = broadcast(finish.soft_cap);
    for (std::int64_t i = 0; i < n; i += Vec::width) {
        const int count = static_cast<int>(std::min<std::int64_t>(Vec::width, n - i));
        const auto part = [&](const float* from) {
            return count == Vec::width ? load(from + i) : load_partial(from + i, count);
        };
        Vec value = Function::apply(part(y));
        if (other != nullptr) value = value * part(other);
        value = value * scale;
        if (finish.soft_cap != 0.0F) value = cap * tanh(value / cap);
        if (finish.add) value = part(to) + value;
        count == Vec::width ? store(to + i, value) : store_partial(to + i, value, count);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
