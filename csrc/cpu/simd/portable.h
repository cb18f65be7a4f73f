// Standard C++ only: eight floats in an array, which compilers turn into what vectors they know. Included by simd.h
// only.
#pragma once

#include <cmath>

#include "cpu/simd/no_bf16_dot.h"

namespace fermi::cpu::FERMI_ISA {

struct Vec {
    static constexpr int width = 8;
    float value[width];
};

inline constexpr int tile_rows = 2;
inline constexpr int tile_columns = 2;

/// result[i] = function(i)
template <class Function>
FERMI_INLINE Vec lanes(Function function) {
    Vec result;
    for (int i = 0; i < Vec::width; ++i) result.value[i] = function(i);
    return result;
}

FERMI_INLINE Vec broadcast(float value) {
    return lanes([&](int) { return value; });
}
FERMI_INLINE Vec zero() {
    return broadcast(0.0F);
}

template <class T>
FERMI_INLINE Vec load(const T* from) {
    return lanes([&](int i) { return to_float(from[i]); });
}
template <class T>
FERMI_INLINE Vec load_partial(const T* from, int count) {
    return lanes([&](int i) { return i < count ? to_float(from[i]) : 0.0F; });
}
template <class T>
FERMI_INLINE void store_partial(T* to, Vec value, int count) {
    for (int i = 0; i < count; ++i) from_float(value.value[i], to[i]);
}
FERMI_INLINE void store_partial(std::int8_t* to, Vec value, int count) {  // the addition pushes the fraction out
    for (int i = 0; i < count; ++i) to[i] = static_cast<std::int8_t>((value.value[i] + 0x1.8p23F) - 0x1.8p23F);
}
template <class T>
FERMI_INLINE void store(T* to, Vec value) {
    store_partial(to, value, Vec::width);
}

FERMI_INLINE Vec operator+(const Vec& a, const Vec& b) {
    return lanes([&](int i) { return a.value[i] + b.value[i]; });
}
FERMI_INLINE Vec operator-(const Vec& a, const Vec& b) {
    return lanes([&](int i) { return a.value[i] - b.value[i]; });
}
FERMI_INLINE Vec operator*(const Vec& a, const Vec& b) {
    return lanes([&](int i) { return a.value[i] * b.value[i]; });
}
FERMI_INLINE Vec operator/(const Vec& a, const Vec& b) {
    return lanes([&](int i) { return a.value[i] / b.value[i]; });
}
/// Rounds twice: a fused multiply-add would be a library call where the machine has none.
FERMI_INLINE Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return lanes([&](int i) { return a.value[i] * b.value[i] + c.value[i]; });
}
FERMI_INLINE Vec maximum(const Vec& a, const Vec& b) {
    return lanes([&](int i) { return a.value[i] > b.value[i] ? a.value[i] : b.value[i]; });
}
FERMI_INLINE Vec minimum(const Vec& a, const Vec& b) {
    return lanes([&](int i) { return a.value[i] < b.value[i] ? a.value[i] : b.value[i]; });
}

FERMI_INLINE Vec select_less(const Vec& a, const Vec& b, const Vec& x, const Vec& y) {
    return lanes([&](int i) { return a.value[i] < b.value[i] ? x.value[i] : y.value[i]; });
}
/// For |a| < 2²²: the addition pushes the fraction out.
FERMI_INLINE Vec round_even(const Vec& a) {
    return lanes([&](int i) { return (a.value[i] + 0x1.8p23F) - 0x1.8p23F; });
}
FERMI_INLINE Vec times_power_of_two(const Vec& a, const Vec& exponent) {
    // In two steps, so that neither factor leaves the range of normal numbers.
    const auto power = [](std::int32_t n) { return std::bit_cast<float>((n + 127) << 23); };
    return lanes([&](int i) {
        const float n = exponent.value[i];
        const std::int32_t whole = n == n ? static_cast<std::int32_t>(n) : 0;
        const std::int32_t half = whole >> 1;
        return a.value[i] * power(half) * power(whole - half);
    });
}

FERMI_INLINE float sum(const Vec& a) {
    const float* v = a.value;
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
FERMI_INLINE void sum_4(const Vec& a, const Vec& b, const Vec& c, const Vec& d, float* out) {
    out[0] = sum(a);
    out[1] = sum(b);
    out[2] = sum(c);
    out[3] = sum(d);
}

FERMI_INLINE float largest(const Vec& a) {
    float result = a.value[0];
    for (int i = 1; i < Vec::width; ++i) result = a.value[i] > result ? a.value[i] : result;
    return result;
}

FERMI_INLINE void prefetch(const void* address) {
    __builtin_prefetch(address);
    keep_call();
}
FERMI_INLINE void prefetch_far(const void* address) {
    __builtin_prefetch(address);
    keep_call();
}

struct Two {
    Vec a, b;
};

}  // namespace fermi::cpu::FERMI_ISA
