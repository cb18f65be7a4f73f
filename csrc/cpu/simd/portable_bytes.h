// Bytes in standard C++. Included by bytes.h only.
#pragma once

#include <cmath>

namespace fermi::cpu::FERMI_ISA {

struct IntVec {
    std::int32_t value[Vec::width];
};
struct ByteVec {
    std::int8_t value[4 * Vec::width];
};

FERMI_INLINE IntVec repeat(std::int32_t value) {
    IntVec result;
    for (std::int32_t& each : result.value) each = value;
    return result;
}
FERMI_INLINE Vec to_float(IntVec a) {
    return lanes([&](int i) { return static_cast<float>(a.value[i]); });
}
FERMI_INLINE ByteVec load_bytes(const void* from) {
    ByteVec result;
    std::memcpy(result.value, from, sizeof result.value);
    return result;
}
FERMI_INLINE ByteVec repeat_bytes(const std::int8_t* from) {
    ByteVec result;
    for (int i = 0; i < 4 * Vec::width; ++i) result.value[i] = from[i % 4];
    return result;
}
FERMI_INLINE ByteVec low_halves(ByteVec a) {
    for (std::int8_t& each : a.value) each = static_cast<std::int8_t>(each & 15);
    return a;
}
FERMI_INLINE ByteVec high_halves(ByteVec a) {
    for (std::int8_t& each : a.value) each = static_cast<std::int8_t>((each >> 4) & 15);
    return a;
}
FERMI_INLINE Vec load_bytes_as_floats(const std::uint8_t* from) {
    return lanes([&](int i) { return static_cast<float>(from[i]); });
}
FERMI_INLINE IntVec to_int(Vec a) {
    IntVec result;
    for (int i = 0; i < Vec::width; ++i) result.value[i] = static_cast<std::int32_t>(std::nearbyint(a.value[i]));
    return result;
}
FERMI_INLINE IntVec operator+(IntVec a, IntVec b) {
    for (int i = 0; i < Vec::width; ++i) a.value[i] += b.value[i];
    return a;
}
FERMI_INLINE std::int32_t sum(IntVec a) {
    std::int32_t total = 0;
    for (const std::int32_t each : a.value) total += each;
    return total;
}
FERMI_INLINE void store_bytes(std::int8_t* to, IntVec a) {
    for (int i = 0; i < Vec::width; ++i) to[i] = static_cast<std::int8_t>(a.value[i]);
}

struct PlainByteDot {
    static constexpr int raise = 0;
    static FERMI_INLINE ByteVec signed_weights(ByteVec a) { return a; }
    static FERMI_INLINE ByteVec four(const std::int8_t* from) { return repeat_bytes(from); }
    static FERMI_INLINE IntVec add(ByteVec w, ByteVec x, IntVec sums) {
        for (int i = 0; i < Vec::width; ++i) {
            for (int j = 4 * i; j < 4 * i + 4; ++j) sums.value[i] += w.value[j] * x.value[j];
        }
        return sums;
    }
    static FERMI_INLINE IntVec add_halves(ByteVec w, ByteVec x, IntVec sums) { return add(w, x, sums); }
};

using FastByteDot = PlainByteDot;
inline bool fast_byte_dot_usable() {
    return true;
}

}  // namespace fermi::cpu::FERMI_ISA
