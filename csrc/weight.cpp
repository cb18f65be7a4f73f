// Checks of weights.
#include "weight.h"

#include <utility>

namespace fermi {
namespace {

constexpr std::int64_t group_multiple = 32;

std::int64_t pieces(std::int64_t size, std::int64_t piece) {
    return (size + piece - 1) / piece;
}

void require_part(std::string_view name, const Tensor& part, const Dims& shape) {
    require(part.defined(), "weight: there are no ", name);
    require(part.shape() == shape && part.contiguous(), "weight: ", name, " must be contiguous ", shape, ", not ",
            part.shape(), " with strides ", part.strides());
}

}  // namespace

std::string_view name_of(WeightFormat format) {
    switch (format) {
        case WeightFormat::dense:
            return "dense";
        case WeightFormat::int8:
            return "int8";
        case WeightFormat::int4:
            return "int4";
    }
    return "?";
}

Weight Weight::dense(Tensor data) {
    require(data.defined(), "weight: there is no data");
    require(is_float(data.dtype()), "weight: the dtype must be f32, f16 or bf16, not ", data.dtype());
    require(data.rank() == 2, "weight: the shape must be [rows, columns], not ", data.shape());
    require(data.stride(1) == 1 || data.size(1) <= 1, "weight: rows must be contiguous, the strides are ",
            data.strides());
    Weight weight;
    weight.data = std::move(data);
    return weight;
}

Dims Weight::packed_shape(WeightFormat format, std::int64_t rows, std::int64_t columns) {
    require(format != WeightFormat::dense, "weight: the dense format is not packed");
    require(rows >= 0 && columns >= 0, "weight: rows and columns must not be negative, they are ", rows, " and ",
            columns);
    return {pieces(rows, strip_rows), pieces(columns, format == WeightFormat::int8 ? 4 : 8), strip_rows, 4};
}

Dims Weight::scales_shape(std::int64_t rows, std::int64_t columns, std::int64_t group) {
    require(group >= 0 && group % group_multiple == 0, "weight: the group must be 0 (all columns) or a multiple of ",
            group_multiple, ", not ", group);
    return {pieces(rows, strip_rows), group == 0 ? 1 : pieces(columns, group), strip_rows};
}

Weight Weight::packed(Tensor data, Tensor scales, Tensor zeros, std::int64_t rows, std::int64_t columns,
                      std::int64_t group) {
    require(data.defined(), "weight: there is no data");
    require(data.dtype() == DType::i8 || data.dtype() == DType::u8,
            "weight: packed data must be i8 (int8) or u8 (int4), not ", data.dtype());
    Weight weight;
    weight.format = data.dtype() == DType::i8 ? WeightFormat::int8 : WeightFormat::int4;
    require_part("data", data, packed_shape(weight.format, rows, columns));
    const Dims shape = scales_shape(rows, columns, group);
    require_part("scales", scales, shape);
    require(scales.dtype() == DType::f16 || scales.dtype() == DType::f32, "weight: scales must be f16 or f32, not ",
            scales.dtype());
    require(scales.device() == data.device(), "weight: scales are on ", scales.device(), ", data on ", data.device());
    if (zeros.defined()) {
        require(weight.format == WeightFormat::int4, "weight: only int4 has zeros");
        require_part("zeros", zeros, shape);
        require(zeros.dtype() == DType::u8, "weight: zeros must be u8, not ", zeros.dtype());
        require(zeros.device() == data.device(), "weight: zeros are on ", zeros.device(), ", data on ", data.device());
    }
    weight.data = std::move(data);
    weight.scales = std::move(scales);
    weight.zeros = std::move(zeros);
    weight.rows_ = rows;
    weight.columns_ = columns;
    weight.group_ = group;
    return weight;
}

Weight Weight::narrow(std::int64_t first, std::int64_t count) const {
    require(first >= 0 && count >= 0 && first <= rows() && count <= rows() - first, "weight: rows ", first, " + ",
            count, " are outside ", *this);
    if (format == WeightFormat::dense) return dense(data.narrow(0, first, count));
    const bool whole = first % strip_rows == 0 && (count % strip_rows == 0 || first + count == rows());
    require(whole, "weight: rows ", first, " + ", count, " of ", *this, " cut a strip of ", strip_rows);
    const std::int64_t strip = first / strip_rows, strips = pieces(count, strip_rows);
    const auto part = [&](const Tensor& tensor) {
        return tensor.defined() ? tensor.narrow(0, strip, strips) : Tensor();
    };
    return packed(part(data), part(scales), part(zeros), count, columns_, group_);
}

std::size_t Weight::bytes() const {
    return data.bytes() + (scales.defined() ? scales.bytes() : 0) + (zeros.defined() ? zeros.bytes() : 0);
}

std::ostream& operator<<(std::ostream& stream, const Weight& weight) {
    if (weight.format == WeightFormat::dense) return stream << weight.data;
    stream << name_of(weight.format) << '[' << weight.rows() << ", " << weight.columns() << ']';
    if (weight.group() != 0) stream << " / " << weight.group();
    return stream << (weight.zeros.defined() ? " asymmetric" : "");
}

}  // namespace fermi
