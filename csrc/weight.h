// A matrix of parameters in one of the formats fermi computes with: the only list of weight formats.
#pragma once

#include <cstdint>
#include <ostream>
#include <string_view>

#include "export.h"
#include "tensor.h"

namespace fermi {

/// `dense`: data is [rows, columns] of f32, f16 or bf16.
///
/// `int8`, `int4`: integers q with a scale for each row and each group of columns, w = scale · (q - zero). They are
/// packed so that one vector holds four columns of several rows: sixteen rows lie side by side in a strip, and of each
/// of them four columns follow each other in memory, as the integer dot products of processors take them.
///   int8  data    i8 [strips, ceil(columns / 4), 16, 4], q in [-127, 127], zero = 0
///   int4  data    u8 [strips, ceil(columns / 8), 16, 4], q in [0, 15]: the low half of byte j is column 8i + j, the
///                 high half column 8i + 4 + j
///   both  scales  f16 or f32 [strips, groups, 16]
///   int4  zeros   u8 [strips, groups, 16], or undefined: zero = 8
/// with strips = ceil(rows / 16). What pads the last strip and the last columns has no meaning.
enum class WeightFormat : std::uint8_t { dense, int8, int4 };

FERMI_API std::string_view name_of(WeightFormat format);

/// Rows of a strip of the packed formats.
inline constexpr std::int64_t strip_rows = 16;

/// rows = output features, columns = input features, as checkpoints store them: y = x · Wᵀ.
class FERMI_API Weight {
  public:
    WeightFormat format = WeightFormat::dense;
    Tensor data;
    Tensor scales;  // packed formats only
    Tensor zeros;   // int4 only, and only when asymmetric

    /// A dense weight. Throws InvalidArgument unless `data` is a float matrix whose rows are contiguous.
    static Weight dense(Tensor data);
    /// A packed weight, int8 or int4 by the dtype of `data`. `group`: columns that share a scale, a multiple of 32, or
    /// 0: all columns. Throws InvalidArgument unless the parts have the shapes that follow from rows, columns and
    /// group.
    static Weight packed(Tensor data, Tensor scales, Tensor zeros, std::int64_t rows, std::int64_t columns,
                         std::int64_t group);
    /// The shape of the packed data, and of scales and zeros. Throws InvalidArgument for a group that is impossible.
    static Dims packed_shape(WeightFormat format, std::int64_t rows, std::int64_t columns);
    static Dims scales_shape(std::int64_t rows, std::int64_t columns, std::int64_t group);

    /// Rows [first, first + count), a view. Throws InvalidArgument for rows that are not there, and for packed ones
    /// that begin or end within a strip, unless that is the weight's end.
    Weight narrow(std::int64_t first, std::int64_t count) const;

    std::int64_t rows() const { return format == WeightFormat::dense ? data.size(0) : rows_; }
    std::int64_t columns() const { return format == WeightFormat::dense ? data.size(1) : columns_; }
    /// Columns that share a scale; 0: all of a row.
    std::int64_t group() const { return group_; }
    /// Bytes read by one pass over the weight.
    std::size_t bytes() const;

  private:
    std::int64_t rows_ = 0;
    std::int64_t columns_ = 0;
    std::int64_t group_ = 0;
};

/// "bf16[1024, 3072]", "int4[1024, 3072] / 64"
FERMI_API std::ostream& operator<<(std::ostream& stream, const Weight& weight);

}  // namespace fermi
