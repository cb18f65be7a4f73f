// AVX2, FMA, F16C: eight floats. Included by simd.h only.
#pragma once

#include <immintrin.h>

#include "cpu/simd/no_bf16_dot.h"

namespace fermi::cpu::FERMI_ISA {

struct Vec {
    static constexpr int width = 8;
    __m256 value;
};

inline constexpr int tile_rows = 3;
inline constexpr int tile_columns = 4;

FERMI_INLINE __m256i first_lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

FERMI_INLINE Vec zero() {
    return {_mm256_setzero_ps()};
}
FERMI_INLINE Vec broadcast(float value) {
    return {_mm256_set1_ps(value)};
}

FERMI_INLINE Vec widen(__m128i bits, bf16) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
FERMI_INLINE Vec widen(__m128i bits, f16) {
    return {_mm256_cvtph_ps(bits)};
}

FERMI_INLINE Vec load(const float* from) {
    return {_mm256_loadu_ps(from)};
}
template <class T>
FERMI_INLINE Vec load(const T* from) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), T{});
}
FERMI_INLINE Vec load(const std::int8_t* from) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))))};
}
FERMI_INLINE Vec load_partial(const float* from, int count) {
    return {_mm256_maskload_ps(from, first_lanes(count))};
}
template <class T>
FERMI_INLINE Vec load_partial(const T* from, int count) {
    T lanes[Vec::width] = {};
    std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(T));
    return load(lanes);
}

FERMI_INLINE __m128i narrow(Vec value, f16) {
    return _mm256_cvtps_ph(value.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
FERMI_INLINE __m128i narrow(Vec value, bf16) {
    const __m256i bits = _mm256_castps_si256(value.value);
    const __m256i upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value.value, value.value, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

FERMI_INLINE void store(float* to, Vec value) {
    _mm256_storeu_ps(to, value.value);
}
template <class T>
FERMI_INLINE void store(T* to, Vec value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(value, T{}));
}
FERMI_INLINE void store(std::int8_t* to, Vec value) {
    const __m256i words = _mm256_cvtps_epi32(value.value);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(halves, halves));
}
FERMI_INLINE void store_partial(float* to, Vec value, int count) {
    _mm256_maskstore_ps(to, first_lanes(count), value.value);
}
template <class T>
FERMI_INLINE void store_partial(T* to, Vec value, int count) {
    T lanes[Vec::width];
    store(lanes, value);
    std::memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

FERMI_INLINE Vec operator+(Vec a, Vec b) {
    return {_mm256_add_ps(a.value, b.value)};
}
FERMI_INLINE Vec operator-(Vec a, Vec b) {
    return {_mm256_sub_ps(a.value, b.value)};
}
FERMI_INLINE Vec operator*(Vec a, Vec b) {
    return {_mm256_mul_ps(a.value, b.value)};
}
FERMI_INLINE Vec operator/(Vec a, Vec b) {
    return {_mm256_div_ps(a.value, b.value)};
}
FERMI_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.value, b.value, c.value)};
}
FERMI_INLINE Vec maximum(Vec a, Vec b) {
    return {_mm256_max_ps(a.value, b.value)};
}
FERMI_INLINE Vec minimum(Vec a, Vec b) {
    return {_mm256_min_ps(a.value, b.value)};
}

FERMI_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
    return {_mm256_blendv_ps(y.value, x.value, _mm256_cmp_ps(a.value, b.value, _CMP_LT_OQ))};
}
FERMI_INLINE Vec round_even(Vec a) {
    return {_mm256_round_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FERMI_INLINE Vec times_power_of_two(Vec a, Vec exponent) {
    // In two steps, so that neither factor leaves the range of normal numbers.
    const __m256i whole = _mm256_cvtps_epi32(exponent.value);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const auto power = [](__m256i n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
    };
    return {_mm256_mul_ps(_mm256_mul_ps(a.value, power(half)), power(_mm256_sub_epi32(whole, half)))};
}

FERMI_INLINE float sum(Vec a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.value), _mm256_extractf128_ps(a.value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

FERMI_INLINE void sum_4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const auto quarter = [](Vec x) {
        return _mm_add_ps(_mm256_castps256_ps128(x.value), _mm256_extractf128_ps(x.value, 1));
    };
    const __m128 a4 = quarter(a), b4 = quarter(b), c4 = quarter(c), d4 = quarter(d);
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(a4, b4), _mm_movehl_ps(b4, a4));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(c4, d4), _mm_movehl_ps(d4, c4));
    _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
}

FERMI_INLINE float largest(Vec a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.value), _mm256_extractf128_ps(a.value, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

FERMI_INLINE void prefetch(const void* address) {
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
    keep_call();
}
FERMI_INLINE void prefetch_far(const void* address) {
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T1);
    keep_call();
}

struct Two {
    Vec a, b;
};

/// bf16: the even elements, then the odd ones.
FERMI_INLINE Two load_two(const bf16* from) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))},
            {_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000)))}};
}
FERMI_INLINE Two load_two_partial(const bf16* from, int count) {
    bf16 lanes[2 * Vec::width] = {};
    std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(bf16));
    return load_two(lanes);
}
FERMI_INLINE void to_two(Vec& a, Vec& b, bf16) {
    const __m256 even = _mm256_shuffle_ps(a.value, b.value, 0x88);  // a0 a2 b0 b2, a4 a6 b4 b6
    const __m256 odd = _mm256_shuffle_ps(a.value, b.value, 0xdd);
    a.value = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8));
    b.value = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xd8));
}
FERMI_INLINE void from_two(Vec& a, Vec& b, bf16) {
    const __m256 low = _mm256_unpacklo_ps(a.value, b.value);  // 0 1 2 3, 8 9 10 11
    const __m256 high = _mm256_unpackhi_ps(a.value, b.value);
    a.value = _mm256_permute2f128_ps(low, high, 0x20);
    b.value = _mm256_permute2f128_ps(low, high, 0x31);
}

}  // namespace fermi::cpu::FERMI_ISA
