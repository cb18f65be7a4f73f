// Bytes with AVX2. Included by bytes.h only.
#pragma once

namespace fermi::cpu::FERMI_ISA {

struct IntVec {
    __m256i value;
};
struct ByteVec {
    __m256i value;
};

FERMI_INLINE IntVec repeat(std::int32_t value) {
    return {_mm256_set1_epi32(value)};
}
FERMI_INLINE Vec to_float(IntVec a) {
    return {_mm256_cvtepi32_ps(a.value)};
}
FERMI_INLINE ByteVec load_bytes(const void* from) {
    return {_mm256_loadu_si256(static_cast<const __m256i*>(from))};
}
FERMI_INLINE ByteVec repeat_bytes(const std::int8_t* from) {
    std::int32_t four = 0;
    std::memcpy(&four, from, sizeof four);
    return {_mm256_set1_epi32(four)};
}
FERMI_INLINE ByteVec low_halves(ByteVec a) {
    return {_mm256_and_si256(a.value, _mm256_set1_epi8(15))};
}
FERMI_INLINE ByteVec high_halves(ByteVec a) {
    return {_mm256_and_si256(_mm256_srli_epi16(a.value, 4), _mm256_set1_epi8(15))};
}
FERMI_INLINE Vec load_bytes_as_floats(const std::uint8_t* from) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))))};
}
FERMI_INLINE IntVec to_int(Vec a) {
    return {_mm256_cvtps_epi32(a.value)};
}
FERMI_INLINE IntVec operator+(IntVec a, IntVec b) {
    return {_mm256_add_epi32(a.value, b.value)};
}
FERMI_INLINE std::int32_t sum(IntVec a) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a.value), _mm256_extracti128_si256(a.value, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
FERMI_INLINE void store_bytes(std::int8_t* to, IntVec a) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a.value), _mm256_extracti128_si256(a.value, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}

struct PlainByteDot {
    static constexpr int raise = 0;
    static FERMI_INLINE ByteVec signed_weights(ByteVec a) { return a; }
    static FERMI_INLINE ByteVec four(const std::int8_t* from) { return repeat_bytes(from); }
    static FERMI_INLINE IntVec add(ByteVec w, ByteVec x, IntVec sums) {
        // |x| · (w with x's sign): two products are at most 2 · 127 · 127, which 16 bits hold.
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x.value), _mm256_sign_epi8(w.value, x.value));
        return {_mm256_add_epi32(sums.value, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
    }
    static FERMI_INLINE IntVec add_halves(ByteVec w, ByteVec x, IntVec sums) {
        const __m256i pairs = _mm256_maddubs_epi16(w.value, x.value);
        return {_mm256_add_epi32(sums.value, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
    }
};

using FastByteDot = PlainByteDot;
inline bool fast_byte_dot_usable() {
    return true;
}

}  // namespace fermi::cpu::FERMI_ISA
