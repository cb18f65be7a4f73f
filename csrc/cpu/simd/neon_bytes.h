// Bytes with Advanced SIMD, and its dot product where the machine has it. Included by bytes.h only.
#pragma once

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace fermi::cpu::FERMI_ISA {

struct IntVec {
    int32x4_t value;
};
struct ByteVec {
    int8x16_t value;
};

FERMI_INLINE IntVec repeat(std::int32_t value) {
    return {vdupq_n_s32(value)};
}
FERMI_INLINE Vec to_float(IntVec a) {
    return {vcvtq_f32_s32(a.value)};
}
FERMI_INLINE ByteVec load_bytes(const void* from) {
    return {vld1q_s8(static_cast<const std::int8_t*>(from))};
}
FERMI_INLINE ByteVec repeat_bytes(const std::int8_t* from) {
    std::int32_t four = 0;
    std::memcpy(&four, from, sizeof four);
    return {vreinterpretq_s8_s32(vdupq_n_s32(four))};
}
FERMI_INLINE ByteVec low_halves(ByteVec a) {
    return {vandq_s8(a.value, vdupq_n_s8(15))};
}
FERMI_INLINE ByteVec high_halves(ByteVec a) {
    return {vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(a.value), 4))};
}
FERMI_INLINE Vec load_bytes_as_floats(const std::uint8_t* from) {
    std::uint32_t four = 0;
    std::memcpy(&four, from, sizeof four);
    const uint16x8_t words = vmovl_u8(vcreate_u8(four));
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(words)))};
}
FERMI_INLINE IntVec to_int(Vec a) {
    return {vcvtnq_s32_f32(a.value)};
}
FERMI_INLINE IntVec operator+(IntVec a, IntVec b) {
    return {vaddq_s32(a.value, b.value)};
}
FERMI_INLINE std::int32_t sum(IntVec a) {
    return vaddvq_s32(a.value);
}
FERMI_INLINE void store_bytes(std::int8_t* to, IntVec a) {
    const int16x4_t words = vqmovn_s32(a.value);
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    std::memcpy(to, &four, sizeof four);
}

/// Armv8.2 DotProd. Written as assembly since the library is compiled for machines without the instruction as well,
/// which must then not meet it anywhere else.
struct FastByteDot {
    static constexpr int raise = 0;
    static FERMI_INLINE ByteVec signed_weights(ByteVec a) { return a; }
    static FERMI_INLINE ByteVec four(const std::int8_t* from) { return repeat_bytes(from); }
    static FERMI_INLINE IntVec add(ByteVec w, ByteVec x, IntVec sums) {
        __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b"
                : "+w"(sums.value)
                : "w"(w.value), "w"(x.value));
        return sums;
    }
    static FERMI_INLINE IntVec add_halves(ByteVec w, ByteVec x, IntVec sums) { return add(w, x, sums); }
};

inline bool fast_byte_dot_usable() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & (1UL << 20)) != 0;  // HWCAP_ASIMDDP
#else
    return true;  // every Apple processor with this instruction set
#endif
}

struct PlainByteDot {
    static constexpr int raise = 0;
    static FERMI_INLINE ByteVec signed_weights(ByteVec a) { return a; }
    static FERMI_INLINE ByteVec four(const std::int8_t* from) { return repeat_bytes(from); }
    static FERMI_INLINE IntVec add(ByteVec w, ByteVec x, IntVec sums) {
        const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w.value), vget_low_s8(x.value)));
        const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(w.value), vget_high_s8(x.value)));
        return {vaddq_s32(sums.value, vpaddq_s32(low, high))};
    }
    static FERMI_INLINE IntVec add_halves(ByteVec w, ByteVec x, IntVec sums) { return add(w, x, sums); }
};

}  // namespace fermi::cpu::FERMI_ISA
