// Element types of tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string_view>

#include "export.h"

namespace fermi {

enum class DType : std::uint8_t { f32, f16, bf16, f64, i8, u8, i16, i32, i64, boolean };

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) {
    switch (dtype) {
        case DType::i8:
        case DType::u8:
        case DType::boolean:
            return 1;
        case DType::f16:
        case DType::bf16:
        case DType::i16:
            return 2;
        case DType::f32:
        case DType::i32:
            return 4;
        case DType::f64:
        case DType::i64:
            return 8;
    }
    return 0;
}

constexpr std::string_view name_of(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return "f32";
        case DType::f16:
            return "f16";
        case DType::bf16:
            return "bf16";
        case DType::f64:
            return "f64";
        case DType::i8:
            return "i8";
        case DType::u8:
            return "u8";
        case DType::i16:
            return "i16";
        case DType::i32:
            return "i32";
        case DType::i64:
            return "i64";
        case DType::boolean:
            return "bool";
    }
    return "?";
}

/// f32, f16 or bf16: what weights, activations and caches may hold.
constexpr bool is_float(DType dtype) {
    return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

inline std::ostream& operator<<(std::ostream& stream, DType dtype) {
    return stream << name_of(dtype);
}

}  // namespace fermi
