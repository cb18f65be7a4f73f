// The 16-bit floats as storage types, with scalar conversions that round to nearest even.
#pragma once

#include <bit>
#include <cstdint>

#include "dtype.h"

namespace fermi::cpu::FERMI_ISA {

/// IEEE 754 binary16.
struct f16 {
    std::uint16_t bits;
};

/// The upper half of a binary32.
struct bf16 {
    std::uint16_t bits;
};

inline float to_float(float value) {
    return value;
}

inline float to_float(std::int8_t value) {
    return static_cast<float>(value);
}

inline float to_float(bf16 value) {
    return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
}

inline float to_float(f16 value) {
    // Exponent and fraction moved in place and rescaled by 2^112: the product makes subnormals right.
    const std::uint32_t magnitude = value.bits & 0x7fffU;
    const std::uint32_t sign = std::uint32_t{value.bits & 0x8000U} << 16;
    const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
    const std::uint32_t infinite = magnitude >= 0x7c00U ? 0x7f800000U : 0U;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | infinite | sign);
}

inline void from_float(float value, float& out) {
    out = value;
}

inline void from_float(float value, bf16& out) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const bool nan = (bits & 0x7fffffffU) > 0x7f800000U;
    out.bits = static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40U : (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

inline void from_float(float value, f16& out) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000U;
    const std::uint32_t magnitude = bits & 0x7fffffffU;
    std::uint32_t half = 0;
    if (magnitude >= 0x7f800000U) {
        half = magnitude > 0x7f800000U ? 0x7e00U | ((magnitude >> 13) & 0x3ffU) : 0x7c00U;
    } else if (magnitude >= 0x477ff000U) {  // 65520: rounds to infinity
        half = 0x7c00U;
    } else if (magnitude >= 0x38800000U) {  // 2^-14: normal
        half = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
    } else {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
        half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
    }
    out.bits = static_cast<std::uint16_t>(half | sign);
}

/// Calls visitor(T{}) with T the element type of a float dtype.
template <class Visitor>
void with_float(DType dtype, Visitor&& visitor) {
    switch (dtype) {
        case DType::f32:
            return visitor(float{});
        case DType::f16:
            return visitor(f16{});
        case DType::bf16:
            return visitor(bf16{});
        default:
            __builtin_unreachable();  // the front doors admit float dtypes only
    }
}

}  // namespace fermi::cpu::FERMI_ISA
