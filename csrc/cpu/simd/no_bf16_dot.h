// For instruction sets without products of bf16 pairs: what generic code names but never calls. Included by simd/ only.
#pragma once

#include "cpu/half.h"

namespace fermi::cpu::FERMI_ISA {

inline constexpr bool has_bf16_dot = false;
inline bool bf16_dot_usable() {
    return false;
}

}  // namespace fermi::cpu::FERMI_ISA
