// Ops that fetch rows: embedding lookup, gather.
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// out[0, n) = from[0, n) in f32.
template <class T>
void widen_row(float* out, const T* from, std::int64_t n) {
    std::int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) store(out + i, load(from + i));
    if (i < n) store_partial(out + i, load_partial(from + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

/// out[0, columns) = row `row` of a packed table.
template <class Scale>
void unpack_row(float* out, const Weight& table, std::int64_t row) {
    const std::int64_t strip = row / strip_rows, lane = row % strip_rows;
    const std::int64_t blocks = table.data.size(1), groups = table.scales.size(1), columns = table.columns();
    const bool halves = table.format == WeightFormat::int4;
    const std::int64_t block_columns = halves ? 8 : 4;
    const auto* bytes = table.data.bytes_data() + (strip * blocks * strip_rows + lane) * 4;
    for (std::int64_t c = 0; c < columns; ++c) {
        const std::int64_t scale = (strip * groups + (table.group() == 0 ? 0 : c / table.group())) * strip_rows + lane;
        const auto byte = static_cast<std::uint8_t>(bytes[c / block_columns * strip_rows * 4 + c % 4]);
        int q = static_cast<std::int8_t>(byte);
        if (halves) {
            const int zero_point = table.zeros.defined() ? table.zeros.data<std::uint8_t>()[scale] : 8;
            q = (c % 8 < 4 ? byte & 15 : byte >> 4) - zero_point;
        }
        out[c] = to_float(table.scales.data<Scale>()[scale]) * static_cast<float>(q);
    }
}

}  // namespace

void run(const Embed& op, const Lane& lane) {
    const std::int64_t hidden = op.table.columns();
    const Range tokens = lane.share(op.out.size(0));
    if (op.table.format != WeightFormat::dense) {
        for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
            const std::int64_t id = op.token_ids.data<std::int32_t>()[t * op.token_ids.stride(0)];
            float* out = op.out.data<float>() + t * op.out.stride(0);
            op.table.scales.dtype() == DType::f16 ? unpack_row<f16>(out, op.table, id)
                                                  : unpack_row<float>(out, op.table, id);
        }
        return;
    }
    with_float(op.table.data.dtype(), [&]<class T>(T) {
        for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
            const std::int64_t id = op.token_ids.data<std::int32_t>()[t * op.token_ids.stride(0)];
            widen_row(op.out.data<float>() + t * op.out.stride(0),
                      op.table.data.data<T>() + id * op.table.data.stride(0), hidden);
        }
    });
}

void run(const GatherRows& op, const Lane& lane) {
    const std::int64_t dim = op.x.size(1);
    const Range rows = lane.share(op.out.size(0));
    for (std::int64_t i = rows.begin; i < rows.end; ++i) {
        const std::int64_t row = op.rows.data<std::int32_t>()[i * op.rows.stride(0)];
        const float* from = op.x.data<float>() + row * op.x.stride(0);
        float* to = op.out.data<float>() + i * op.out.stride(0);
        if (op.x.stride(1) == 1) {
            std::memcpy(to, from, static_cast<std::size_t>(dim) * sizeof(float));
        } else {
            for (std::int64_t c = 0; c < dim; ++c) to[c] = from[c * op.x.stride(1)];
        }
    }
}

}  // namespace fermi::cpu::FERMI_ISA
