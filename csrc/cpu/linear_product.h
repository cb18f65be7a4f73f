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
    std::int64_t bundle;     // of int8 instead: rows that lie interleaved (see ByteRows)
};

/// results = x · Wᵀ + bias, of the item's tokens and outputs. `saved`: dense_scratch bytes for a dense weight.
void multiply(const ProductRows& x, const Weight& weight, const Tensor* bias, const Item& item, const Results& results,
              Vec* saved);

/// How rows of x, f32 that lie `other`wise, meet a dense weight of this dtype.
InputKind dense_kind(DType dtype, std::int64_t tokens, std::int64_t columns, Numerics numerics, InputKind other);

/// Whether memory is the limit for so many tokens.
bool streams(std::int64_t tokens);

/// Tokens that an item works on, of so many.
std::int64_t tokens_per_item(InputKind kind, std::int64_t tokens, std::int64_t columns);

/// Outputs that an item works on: few enough for the lanes to end together, enough to stream. Whole tiles.
/// `rows`: of the op, all of which are like the weight's. `buffered`: results wait for an activation.
std::int64_t outputs_per_item(InputKind kind, const Weight& weight, std::int64_t tokens, std::int64_t rows,
                              bool buffered, int lanes);

/// Outputs of a tile, of which items are made.
std::int64_t tile_outputs(InputKind kind);

}  // namespace fermi::cpu::FERMI_ISA
