// A matrix of parameters in one of the formats fermi computes with: the only list of weight formats.
#pragma once

#include <cstdint>
#include <ostream>

#include "export.h"
#include "tensor.h"

namespace fermi {

/// `dense`: data is [rows, columns] of f32, f16 or bf16.
enum class WeightFormat : std::uint8_t { dense };

/// rows = output features, columns = input features, as checkpoints store them: y = x · Wᵀ.
struct FERMI_API Weight {
    WeightFormat format = WeightFormat::dense;
    Tensor data;

    /// A dense weight. Throws InvalidArgument unless `data` is a float matrix whose rows are contiguous.
    static Weight dense(Tensor data);

    std::int64_t rows() const { return data.size(0); }
    std::int64_t columns() const { return data.size(1); }
    /// Bytes read by one pass over the weight.
    std::size_t bytes() const { return data.bytes(); }
};

/// "bf16[1024, 3072]"
FERMI_API std::ostream& operator<<(std::ostream& stream, const Weight& weight);

}  // namespace fermi
