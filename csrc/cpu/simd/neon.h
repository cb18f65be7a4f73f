// Armv8-A Advanced SIMD: four floats. Included by simd.h only.
#pragma once

#include <arm_neon.h>

#include "cpu/simd/no_bf16_dot.h"

namespace fermi::cpu::FERMI_ISA {

struct Vec {
    static constexpr int width = 4;
    float32x4_t value;
};

inline constexpr int tile_rows = 4;
inline constexpr int tile_columns = 6;

FERMI_INLINE Vec zero() {
    return {vdupq_n_f32(0.0F)};
}
FERMI_INLINE Vec broadcast(float value) {
    return {vdupq_n_f32(value)};
}

FERMI_INLINE Vec widen(uint16x4_t bits, bf16) {
    return {vreinterpretq_f32_u32(vshll_n_u16(bits, 16))};
}
FERMI_INLINE Vec widen(uint16x4_t bits, f16) {
    return {vcvt_f32_f16(vreinterpret_f16_u16(bits))};
}

FERMI_INLINE Vec load(const float* from) {
    return {vld1q_f32(from)};
}
template <class T>
FERMI_INLINE Vec load(const T* from) {
    return widen(vld1_u16(reinterpret_cast<const std::uint16_t*>(from)), T{});
}
FERMI_INLINE Vec load(const std::int8_t* from) {
    std::int32_t four = 0;
    std::memcpy(&four, from, sizeof four);
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))};
}
template <class T>
FERMI_INLINE Vec load_partial(const T* from, int count) {
    T lanes[Vec::width] = {};
    std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(T));
    return load(lanes);
}

FERMI_INLINE uint16x4_t narrow(Vec value, f16) {
    return vreinterpret_u16_f16(vcvt_f16_f32(value.value));
}
FERMI_INLINE uint16x4_t narrow(Vec value, bf16) {
    const uint32x4_t bits = vreinterpretq_u32_f32(value.value);
    const uint32x4_t upper = vshrq_n_u32(bits, 16);
    const uint32x4_t odd = vandq_u32(upper, vdupq_n_u32(1));
    const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    const uint32x4_t quiet = vorrq_u32(upper, vdupq_n_u32(0x40));
    return vmovn_u32(vbslq_u32(vceqq_f32(value.value, value.value), rounded, quiet));
}

FERMI_INLINE void store(float* to, Vec value) {
    vst1q_f32(to, value.value);
}
template <class T>
FERMI_INLINE void store(T* to, Vec value) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(to), narrow(value, T{}));
}
FERMI_INLINE void store(std::int8_t* to, Vec value) {
    const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(value.value));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    const std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    std::memcpy(to, &four, sizeof four);
}
template <class T>
FERMI_INLINE void store_partial(T* to, Vec value, int count) {
    T lanes[Vec::width];
    store(lanes, value);
    std::memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

FERMI_INLINE Vec operator+(Vec a, Vec b) {
    return {vaddq_f32(a.value, b.value)};
}
FERMI_INLINE Vec operator-(Vec a, Vec b) {
    return {vsubq_f32(a.value, b.value)};
}
FERMI_INLINE Vec operator*(Vec a, Vec b) {
    return {vmulq_f32(a.value, b.value)};
}
FERMI_INLINE Vec operator/(Vec a, Vec b) {
    return {vdivq_f32(a.value, b.value)};
}
FERMI_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {vfmaq_f32(c.value, a.value, b.value)};
}
FERMI_INLINE Vec maximum(Vec a, Vec b) {
    return {vbslq_f32(vcgtq_f32(a.value, b.value), a.value, b.value)};
}
FERMI_INLINE Vec minimum(Vec a, Vec b) {
    return {vbslq_f32(vcltq_f32(a.value, b.value), a.value, b.value)};
}

FERMI_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
    return {vbslq_f32(vcltq_f32(a.value, b.value), x.value, y.value)};
}
FERMI_INLINE Vec round_even(Vec a) {
    return {vrndnq_f32(a.value)};
}
FERMI_INLINE Vec times_power_of_two(Vec a, Vec exponent) {
    // In two steps, so that neither factor leaves the range of normal numbers.
    const int32x4_t whole = vcvtnq_s32_f32(exponent.value);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    const auto power = [](int32x4_t n) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
    };
    return {vmulq_f32(vmulq_f32(a.value, power(half)), power(vsubq_s32(whole, half)))};
}

FERMI_INLINE float sum(Vec a) {
    const float32x2_t two = vadd_f32(vget_low_f32(a.value), vget_high_f32(a.value));
    return vget_lane_f32(vpadd_f32(two, two), 0);
}

FERMI_INLINE void sum_4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const auto two = [](Vec x) { return vadd_f32(vget_low_f32(x.value), vget_high_f32(x.value)); };
    vst1q_f32(out, vpaddq_f32(vcombine_f32(two(a), two(b)), vcombine_f32(two(c), two(d))));
}

FERMI_INLINE float largest(Vec a) {
    return vmaxvq_f32(a.value);
}

FERMI_INLINE void prefetch(const void* address) {
    __builtin_prefetch(address);
    keep_call();
}
FERMI_INLINE void prefetch_far(const void* address) {
    __builtin_prefetch(address, 0, 2);
    keep_call();
}

struct Two {
    Vec a, b;
};

}  // namespace fermi::cpu::FERMI_ISA
