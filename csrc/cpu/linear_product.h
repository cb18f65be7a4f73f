// One item's product, whatever the format of the weight and the kind of its input: what all linear ops are made of.
#pragma once

#include "cpu/linear_inputs.h"
#include "cpu/linear_item.h"
#include "cpu/simd.h"
#include "weight.h"

namespace fermi::cpu::FERMI_ISA {

/// Rows of x: floats as they are, or what InputRows has made of them.
struct ProductRows {
    InputKind kind;
    const std::byte* data;
    std::int64_t row_bytes;  // from row to row
};

/// results = x · Wᵀ + bias, of the item's tokens and outputs. `saved`: dense_scratch bytes for a dense weight.
void multiply(const ProductRows& x, const Weight& weight, const Tensor* bias, const Item& item, const Results& results,
              Vec* saved);

}  // namespace fermi::cpu::FERMI_ISA
