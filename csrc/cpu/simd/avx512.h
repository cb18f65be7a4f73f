// AVX-512 F, BW, DQ, VL: sixteen floats. Included by simd.h only.
#pragma once

#include <cpuid.h>
// GCC 12 takes the undefined lanes of its own intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace fermi::cpu::FERMI_ISA {

struct Vec {
    static constexpr int width = 16;
    __m512 value;
};

inline constexpr int tile_rows = 5;
inline constexpr int tile_columns = 5;

FERMI_INLINE __mmask16 first_lanes(int count) {
    return static_cast<__mmask16>((1U << count) - 1U);
}

FERMI_INLINE Vec zero() {
    return {_mm512_setzero_ps()};
}
FERMI_INLINE Vec broadcast(float value) {
    return {_mm512_set1_ps(value)};
}

FERMI_INLINE Vec widen(__m256i bits, bf16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
FERMI_INLINE Vec widen(__m256i bits, f16) {
    return {_mm512_cvtph_ps(bits)};
}

FERMI_INLINE Vec load(const float* from) {
    return {_mm512_loadu_ps(from)};
}
template <class T>
FERMI_INLINE Vec load(const T* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), T{});
}
FERMI_INLINE Vec load_partial(const float* from, int count) {
    return {_mm512_maskz_loadu_ps(first_lanes(count), from)};
}
template <class T>
FERMI_INLINE Vec load_partial(const T* from, int count) {
    return widen(_mm256_maskz_loadu_epi16(first_lanes(count), from), T{});
}

FERMI_INLINE Vec load(const std::int8_t* from) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
}
FERMI_INLINE Vec load_partial(const std::int8_t* from, int count) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(count), from)))};
}

FERMI_INLINE __m256i narrow(Vec value, f16) {
    return _mm512_cvtps_ph(value.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
FERMI_INLINE __m256i narrow(Vec value, bf16) {
    const __m512i bits = _mm512_castps_si512(value.value);
    const __m512i upper = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(value.value, value.value, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)));
}

FERMI_INLINE void store(float* to, Vec value) {
    _mm512_storeu_ps(to, value.value);
}
template <class T>
FERMI_INLINE void store(T* to, Vec value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(value, T{}));
}
FERMI_INLINE void store_partial(float* to, Vec value, int count) {
    _mm512_mask_storeu_ps(to, first_lanes(count), value.value);
}
template <class T>
FERMI_INLINE void store_partial(T* to, Vec value, int count) {
    _mm256_mask_storeu_epi16(to, first_lanes(count), narrow(value, T{}));
}

FERMI_INLINE void store(std::int8_t* to, Vec value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value.value)));
}
FERMI_INLINE void store_partial(std::int8_t* to, Vec value, int count) {
    _mm_mask_storeu_epi8(to, first_lanes(count), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value.value)));
}

FERMI_INLINE Vec operator+(Vec a, Vec b) {
    return {_mm512_add_ps(a.value, b.value)};
}
FERMI_INLINE Vec operator-(Vec a, Vec b) {
    return {_mm512_sub_ps(a.value, b.value)};
}
FERMI_INLINE Vec operator*(Vec a, Vec b) {
    return {_mm512_mul_ps(a.value, b.value)};
}
FERMI_INLINE Vec operator/(Vec a, Vec b) {
    return {_mm512_div_ps(a.value, b.value)};
}
FERMI_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {_mm512_fmadd_ps(a.value, b.value, c.value)};
}
FERMI_INLINE Vec maximum(Vec a, Vec b) {
    return {_mm512_max_ps(a.value, b.value)};
}
FERMI_INLINE Vec minimum(Vec a, Vec b) {
    return {_mm512_min_ps(a.value, b.value)};
}

FERMI_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.value, b.value, _CMP_LT_OQ), y.value, x.value)};
}
FERMI_INLINE Vec round_even(Vec a) {
    return {_mm512_roundscale_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FERMI_INLINE Vec times_power_of_two(Vec a, Vec exponent) {
    return {_mm512_scalef_ps(a.value, exponent.value)};
}

FERMI_INLINE float sum(Vec a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.value), _mm512_extractf32x8_ps(a.value, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

FERMI_INLINE void sum_4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const auto halves = [](__m512 x, __m512 y) {  // lanes i + (i + 8): [x's eight, y's eight]
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    };
    const __m512 ab = halves(a.value, b.value);
    const __m512 cd = halves(c.value, d.value);
    const __m512 quarters = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 pairs = _mm512_add_ps(quarters, _mm512_permute_ps(quarters, 0x4e));
    const __m512 sums = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(
                           _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0), sums)));
}

/// Sixteen sums: those of vectors 4q … 4q + 3 become element q of the four quarters of the result.
FERMI_INLINE Vec sum_16(const Vec (&v)[16]) {
    const auto halves = [](Vec x, Vec y) {  // i + (i + 8): [x's eight, y's eight]
        return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, x.value, y.value),
                             _mm512_shuffle_f32x4(x.value, y.value, 0x4e));
    };
    __m512 quarters[4];  // i + (i + 4): the fours of four vectors
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
        const __m512 a = halves(v[4 * q], v[4 * q + 1]), b = halves(v[4 * q + 2], v[4 * q + 3]);
        quarters[q] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    const auto pairs = [](__m512 x, __m512 y) {  // i + (i + 2): [x's two, y's two] in each quarter
        return _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, x, y), _mm512_shuffle_ps(x, y, 0x4e));
    };
    const __m512 a = pairs(quarters[0], quarters[1]), b = pairs(quarters[2], quarters[3]);
    return {_mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd))};
}

/// N of sum_scores for M rows: sixteen sums, or twelve.
constexpr int score_columns(int rows) {
    return rows == 1 ? 16 : rows == 2 ? 8 : 4;
}
/// out[m · stride + n] = sum(sums[m][n])
template <int M, int N>
FERMI_INLINE void sum_scores(const Vec (&sums)[M][N], float* out, std::int64_t stride) {
    static_assert(M <= 4, "a row takes a quarter of a vector");
    if constexpr (N == score_columns(M)) {
        Vec v[16];  // quarter L of the result: columns 4 (L / M) … of row L % M
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
#pragma GCC unroll 4
            for (int quarter = 0; quarter < 4; ++quarter) {
                const int column = q + 4 * (quarter / M);
                v[4 * q + quarter] = column < N ? sums[quarter % M][column < N ? column : 0] : zero();
            }
        }
        const __m512 result = sum_16(v).value;
        if constexpr (M == 1) {
            _mm512_storeu_ps(out, result);
        } else if constexpr (M == 2) {  // quarters: row 0, row 1, row 0 further on, row 1
            const __m512 rows = _mm512_shuffle_f32x4(result, result, 0xd8);
            _mm256_storeu_ps(out, _mm512_castps512_ps256(rows));
            _mm256_storeu_ps(out + stride, _mm512_extractf32x8_ps(rows, 1));
        } else {
            _mm_storeu_ps(out, _mm512_castps512_ps128(result));
            _mm_storeu_ps(out + stride, _mm512_extractf32x4_ps(result, 1));
            _mm_storeu_ps(out + 2 * stride, _mm512_extractf32x4_ps(result, 2));
            if constexpr (M == 4) _mm_storeu_ps(out + 3 * stride, _mm512_extractf32x4_ps(result, 3));
        }
    } else {
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            if constexpr (N == 4) {
                sum_4(sums[m][0], sums[m][1], sums[m][2], sums[m][3], out + m * stride);
            } else {
                for (int n = 0; n < N; ++n) out[m * stride + n] = sum(sums[m][n]);
            }
        }
    }
}

FERMI_INLINE float largest(Vec a) {
    return _mm512_reduce_max_ps(a.value);
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
FERMI_INLINE Two halves_of(__m512i pairs) {
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))},
            {_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)))}};
}
FERMI_INLINE Two load_two(const bf16* from) {
    return halves_of(_mm512_loadu_si512(from));
}
FERMI_INLINE Two load_two_partial(const bf16* from, int count) {
    return halves_of(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ULL << count) - 1ULL), from));
}
FERMI_INLINE void to_two(Vec& a, Vec& b, bf16) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 first = _mm512_permutex2var_ps(a.value, even, b.value);
    b.value = _mm512_permutex2var_ps(a.value, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b.value);
    a.value = first;
}
FERMI_INLINE void from_two(Vec& a, Vec& b, bf16) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512 first = _mm512_permutex2var_ps(a.value, low, b.value);
    b.value = _mm512_permutex2var_ps(a.value, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b.value);
    a.value = first;
}

/// The transpose of a 16 × 16 matrix, in place.
FERMI_INLINE void transpose(Vec (&rows)[Vec::width]) {
    Vec turned[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        turned[i].value = _mm512_unpacklo_ps(rows[i].value, rows[i + 1].value);
        turned[i + 1].value = _mm512_unpackhi_ps(rows[i].value, rows[i + 1].value);
    }
    const auto pairs = [](Vec x, Vec y, auto&& unpack) {
        return Vec{_mm512_castpd_ps(unpack(_mm512_castps_pd(x.value), _mm512_castps_pd(y.value)))};
    };
    const auto low = [](__m512d x, __m512d y) { return _mm512_unpacklo_pd(x, y); };
    const auto high = [](__m512d x, __m512d y) { return _mm512_unpackhi_pd(x, y); };
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        rows[i] = pairs(turned[i], turned[i + 2], low);
        rows[i + 1] = pairs(turned[i], turned[i + 2], high);
        rows[i + 2] = pairs(turned[i + 1], turned[i + 3], low);
        rows[i + 3] = pairs(turned[i + 1], turned[i + 3], high);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // quarter q of rows[i + 4k]: column 4q + i of rows 4k … 4k + 3
        const __m512 a = _mm512_shuffle_f32x4(rows[i].value, rows[i + 4].value, 0x88);
        const __m512 b = _mm512_shuffle_f32x4(rows[i].value, rows[i + 4].value, 0xdd);
        const __m512 c = _mm512_shuffle_f32x4(rows[i + 8].value, rows[i + 12].value, 0x88);
        const __m512 d = _mm512_shuffle_f32x4(rows[i + 8].value, rows[i + 12].value, 0xdd);
        turned[i].value = _mm512_shuffle_f32x4(a, c, 0x88);
        turned[i + 8].value = _mm512_shuffle_f32x4(a, c, 0xdd);
        turned[i + 4].value = _mm512_shuffle_f32x4(b, d, 0x88);
        turned[i + 12].value = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = turned[i];
}

inline constexpr bool has_bf16_dot = true;

/// CPUID leaf 7, subleaf 1: AVX512_BF16.
inline bool bf16_dot_usable() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1U << 5)) != 0;
}

/// Pairs of bf16: 2 · width elements.
struct PairVec {
    __m512i value;
};

FERMI_INLINE PairVec load_pairs(const bf16* from) {
    return {_mm512_loadu_si512(from)};
}
FERMI_INLINE PairVec load_pairs_partial(const bf16* from, int count) {
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ULL << count) - 1ULL), from)};
}
FERMI_INLINE void store_pairs(bf16* to, PairVec pairs) {
    _mm512_storeu_si512(to, pairs.value);
}
FERMI_INLINE PairVec zero_pairs() {
    return {_mm512_setzero_si512()};
}
/// The same pair in every lane.
FERMI_INLINE PairVec repeat_pair(const bf16* from) {
    std::int32_t pair = 0;
    std::memcpy(&pair, from, sizeof pair);
    return {_mm512_set1_epi32(pair)};
}
/// Turns rows a and b into pairs (a[i], b[i]), in the order that costs least: quadruples 0, 2, 4, 6 of i, then the
/// others.
FERMI_INLINE void interleave(PairVec& a, PairVec& b) {
    const __m512i low = _mm512_unpacklo_epi16(a.value, b.value);
    b.value = _mm512_unpackhi_epi16(a.value, b.value);
    a.value = low;
}
/// Elements 0 … 31 to the order of `interleave`, and back.
FERMI_INLINE void to_interleaved(Vec& a, Vec& b) {
    const __m512 even = _mm512_shuffle_f32x4(a.value, b.value, 0x88);
    b.value = _mm512_shuffle_f32x4(a.value, b.value, 0xdd);
    a.value = even;
}
FERMI_INLINE void from_interleaved(Vec& a, Vec& b) {
    const __m512 low = _mm512_shuffle_f32x4(a.value, b.value, 0x44);
    const __m512 high = _mm512_shuffle_f32x4(a.value, b.value, 0xee);
    a.value = _mm512_shuffle_f32x4(low, low, 0xd8);
    b.value = _mm512_shuffle_f32x4(high, high, 0xd8);
}
/// Stores a vector as bf16. Assembly for the reason below.
FERMI_INLINE void store_rounded(bf16* to, Vec value) {
    __m256i bits;
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(value.value));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
}
/// Elements 0 … 31 as bf16.
FERMI_INLINE PairVec round_pairs(Vec a, Vec b) {
    PairVec pairs;
    __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(pairs.value) : "v"(a.value), "v"(b.value));
    return pairs;
}
FERMI_INLINE PairVec pairs_of_ones() {
    return {_mm512_set1_epi16(0x3f80)};
}
/// c[i] + a[2i + 1]·b[2i + 1] + a[2i]·b[2i]. Written as assembly since the library is compiled for machines without the
/// instruction as well, which must then not meet it anywhere else.
FERMI_INLINE Vec dot_pairs(PairVec a, PairVec b, Vec c) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(c.value) : "v"(a.value), "v"(b.value));
    return c;
}

}  // namespace fermi::cpu::FERMI_ISA
