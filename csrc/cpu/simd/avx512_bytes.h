// Bytes with AVX-512 BW, and VNNI where the machine has it. Included by bytes.h only.
#pragma once

namespace fermi::cpu::FERMI_ISA {

struct IntVec {
    __m512i value;
};
struct ByteVec {
    __m512i value;
};

FERMI_INLINE IntVec repeat(std::int32_t value) {
    return {_mm512_set1_epi32(value)};
}
FERMI_INLINE Vec to_float(IntVec a) {
    return {_mm512_cvtepi32_ps(a.value)};
}
FERMI_INLINE ByteVec load_bytes(const void* from) {
    return {_mm512_loadu_si512(from)};
}
FERMI_INLINE ByteVec repeat_bytes(const std::int8_t* from) {
    std::int32_t four = 0;
    std::memcpy(&four, from, sizeof four);
    return {_mm512_set1_epi32(four)};
}
FERMI_INLINE ByteVec low_halves(ByteVec a) {
    return {_mm512_and_si512(a.value, _mm512_set1_epi8(15))};
}
FERMI_INLINE ByteVec high_halves(ByteVec a) {
    return {_mm512_and_si512(_mm512_srli_epi16(a.value, 4), _mm512_set1_epi8(15))};
}
FERMI_INLINE Vec load_bytes_as_floats(const std::uint8_t* from) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
}
FERMI_INLINE IntVec to_int(Vec a) {
    return {_mm512_cvtps_epi32(a.value)};
}
FERMI_INLINE IntVec operator+(IntVec a, IntVec b) {
    return {_mm512_add_epi32(a.value, b.value)};
}
FERMI_INLINE std::int32_t sum(IntVec a) {
    return _mm512_reduce_add_epi32(a.value);
}
FERMI_INLINE void store_bytes(std::int8_t* to, IntVec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(a.value));
}

/// to[step][row] = from[row][step] of four bytes each: 8 rows that lie `stride` bytes apart, 16 steps.
FERMI_INLINE void interleave_eight(std::int8_t* to, const std::int8_t* from, std::int64_t stride) {
    __m512i rows[8], pairs[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) rows[i] = _mm512_loadu_si512(from + i * stride);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {  // rows 4 · half …; quarter q of fours[k]: step 4q + k
        const __m512i* p = pairs + 4 * half;
        const __m512i fours[4] = {_mm512_unpacklo_epi64(p[0], p[2]), _mm512_unpackhi_epi64(p[0], p[2]),
                                  _mm512_unpacklo_epi64(p[1], p[3]), _mm512_unpackhi_epi64(p[1], p[3])};
        std::int8_t* out = to + 16 * half;
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const auto at = [&](int quarter) { return reinterpret_cast<__m128i*>(out + (4 * quarter + k) * 32); };
            _mm_storeu_si128(at(0), _mm512_castsi512_si128(fours[k]));
            _mm_storeu_si128(at(1), _mm512_extracti32x4_epi32(fours[k], 1));
            _mm_storeu_si128(at(2), _mm512_extracti32x4_epi32(fours[k], 2));
            _mm_storeu_si128(at(3), _mm512_extracti32x4_epi32(fours[k], 3));
        }
    }
}

/// AVX512-VNNI. Written as assembly since the library is compiled for machines without the instruction as well, which
/// must then not meet it anywhere else.
struct FastByteDot {
    static constexpr int raise = 128;  // its weights are unsigned
    static FERMI_INLINE ByteVec signed_weights(ByteVec a) {
        return {_mm512_xor_si512(a.value, _mm512_set1_epi8(-128))};
    }
    static FERMI_INLINE IntVec add(ByteVec w, ByteVec x, IntVec sums) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sums.value) : "v"(w.value), "v"(x.value));
        return sums;
    }
    /// Four bytes that the instruction itself repeats.
    struct Four {
        const std::int8_t* from;
    };
    static FERMI_INLINE Four four(const std::int8_t* from) { return {from}; }
    static FERMI_INLINE IntVec add(ByteVec w, Four x, IntVec sums) {
        __asm__("vpdpbusd %2%{1to16%}, %1, %0"
                : "+v"(sums.value)
                : "v"(w.value), "m"(*reinterpret_cast<const std::int8_t (*)[4]>(x.from)));
        return sums;
    }
    static FERMI_INLINE IntVec add_halves(ByteVec w, Four x, IntVec sums) { return add(w, x, sums); }
};

/// CPUID leaf 7: AVX512_VNNI.
inline bool fast_byte_dot_usable() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c & (1U << 11)) != 0;
}

struct PlainByteDot {
    static constexpr int raise = 0;
    static FERMI_INLINE ByteVec signed_weights(ByteVec a) { return a; }
    static FERMI_INLINE ByteVec four(const std::int8_t* from) { return repeat_bytes(from); }
    static FERMI_INLINE IntVec add(ByteVec w, ByteVec x, IntVec sums) {
        const auto odd = [](__m512i a) { return _mm512_srai_epi16(a, 8); };
        const auto even = [&](__m512i a) { return odd(_mm512_slli_epi16(a, 8)); };
        const __m512i products = _mm512_add_epi32(_mm512_madd_epi16(even(w.value), even(x.value)),
                                                  _mm512_madd_epi16(odd(w.value), odd(x.value)));
        return {_mm512_add_epi32(sums.value, products)};
    }
    static FERMI_INLINE IntVec add_halves(ByteVec w, ByteVec x, IntVec sums) {
        // Two products are at most 2 · 15 · 127: no saturation.
        const __m512i pairs = _mm512_maddubs_epi16(w.value, x.value);
        return {_mm512_add_epi32(sums.value, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
    }
};

}  // namespace fermi::cpu::FERMI_ISA
