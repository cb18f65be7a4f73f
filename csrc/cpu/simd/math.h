// Elementary functions on vectors, the same for every instruction set.
#pragma once

#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

/// x - n ln 2, with ln 2 in two parts: n times the first is exact.
FERMI_INLINE Vec reduce(Vec x, Vec n) {
    return fma(n, broadcast(-0x1.7f7d1cp-20F), fma(n, broadcast(-0x1.62e4p-1F), x));
}

/// Cephes' expf, less one: eʳ - 1 = r + r² P(r) for |r| ≤ ln 2 / 2.
FERMI_INLINE Vec exp_less_one(Vec r) {
    Vec p = broadcast(1.9875691500e-4F);
    p = fma(p, r, broadcast(1.3981999507e-3F));
    p = fma(p, r, broadcast(8.3334519073e-3F));
    p = fma(p, r, broadcast(4.1665795894e-2F));
    p = fma(p, r, broadcast(1.6666665459e-1F));
    p = fma(p, r, broadcast(5.0000001201e-1F));
    return fma(p, r * r, r);
}

/// eˣ to 2 ulp over the whole range: subnormal results, 0 for -∞, ∞ above 88.73, NaN for NaN; exp(0) is 1.
FERMI_INLINE Vec exp(Vec x) {
    x = minimum(broadcast(89.0F), maximum(broadcast(-105.0F), x));
    const Vec n = round_even(x * broadcast(0x1.715476p+0F));  // x / ln 2
    return times_power_of_two(exp_less_one(reduce(x, n)) + broadcast(1.0F), n);
}

/// 1 / (1 + e⁻ˣ)
FERMI_INLINE Vec sigmoid(Vec x) {
    return broadcast(1.0F) / (broadcast(1.0F) + exp(zero() - x));
}

/// tanh to 4 ulp: y / (y + 2) with y = e²ˣ - 1, which is 2ⁿ (eʳ - 1) + (2ⁿ - 1).
FERMI_INLINE Vec tanh(Vec x) {
    x = minimum(broadcast(20.0F), maximum(broadcast(-20.0F), x + x));
    const Vec n = round_even(x * broadcast(0x1.715476p+0F));
    const Vec power = times_power_of_two(broadcast(1.0F), n);
    const Vec y = fma(exp_less_one(reduce(x, n)), power, power - broadcast(1.0F));
    return y / (y + broadcast(2.0F));
}

/// The error function to 3e-7 absolute: x P(x²) / Q(x²) on [-4, 4], outside of which it is ±1.
FERMI_INLINE Vec erf(Vec x) {
    x = minimum(broadcast(4.0F), maximum(broadcast(-4.0F), x));
    const Vec y = x * x;
    Vec p = broadcast(-2.72614225801306e-10F);
    p = fma(p, y, broadcast(2.77068142495902e-08F));
    p = fma(p, y, broadcast(-2.10102402082508e-06F));
    p = fma(p, y, broadcast(-5.69250639462346e-05F));
    p = fma(p, y, broadcast(-7.34990630326855e-04F));
    p = fma(p, y, broadcast(-2.95459980854025e-03F));
    p = fma(p, y, broadcast(-1.60960333262415e-02F));
    Vec q = broadcast(-1.45660718464996e-05F);
    q = fma(q, y, broadcast(-2.13374055278905e-04F));
    q = fma(q, y, broadcast(-1.68282697438203e-03F));
    q = fma(q, y, broadcast(-7.37332916720468e-03F));
    q = fma(q, y, broadcast(-1.42647390514189e-02F));
    return x * p / q;
}

}  // namespace fermi::cpu::FERMI_ISA
