// Ops that fetch rows: embedding lookup, gather.
#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/vectors.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// out[0, n) = scale · from[0, n), or added to what is there.
template <class T>
void widen_row(float* out, const T* from, std::int64_t n, float scale, bool add) {
    const Vec factor = broadcast(scale);
    for_vectors(n, [&](const auto& get, const auto& put) {
        const Vec value = get(from) * factor;
        put(out, add ? get(out) + value : value);
    });
}

/// Where the numbers of one row of a packed table lie.
class PackedRow {
  public:
    PackedRow(const Weight& table, std::int64_t row)
        : table_(table), first_scale_(row / strip_rows * table.scales.size(1) * strip_rows + row % strip_rows) {
        const std::int64_t strip = row / strip_rows, lane = row % strip_rows;
        words_ = table.data.bytes_data() + (strip * table.data.size(1) * strip_rows + lane) * word;
    }

    /// out[0, columns) = scale · the row, or added to what is there. Scale: the dtype of the scales.
    template <class Scale>
    void unpack(float* out, float scale, bool add) const {
        const std::int64_t columns = table_.columns(), group = table_.group() == 0 ? columns : table_.group();
        std::int8_t levels[most_levels];
        const Vec factor = broadcast(scale);
        for (std::int64_t begin = 0; begin < columns; begin += group) {
            const std::int64_t end = std::min(columns, begin + group), at = first_scale_ + begin / group * strip_rows;
            const Vec step = broadcast(to_float(table_.scales.data<Scale>()[at])), zero = broadcast(zero_point(at));
            for (std::int64_t c = begin; c < end; c += most_levels) {
                const std::int64_t n = std::min(most_levels, end - c);
                read(levels, c, n);
                for_vectors(n, [&](const auto& get, const auto& put) {
                    const Vec value = step * (get(levels) - zero) * factor;
                    put(out + c, add ? get(out + c) + value : value);
                });
            }
        }
    }

  private:
    /// Bytes of a row that follow each other; the next ones lie a block of all the strip's rows further on.
    static constexpr std::int64_t word = 4;
    /// Levels that are unpacked at a time: whole blocks, so that groups and these begin with one.
    static constexpr std::int64_t most_levels = 256;

    float zero_point(std::int64_t at) const {
        if (table_.format == WeightFormat::int8) return 0.0F;
        return table_.zeros.defined() ? static_cast<float>(table_.zeros.data<std::uint8_t>()[at]) : 8.0F;
    }

    /// The levels of columns [c, c + n), and of those that complete the last block.
    void read(std::int8_t* levels, std::int64_t c, std::int64_t n) const {
        const bool halves = table_.format == WeightFormat::int4;
        const std::int64_t columns = halves ? 2 * word : word;  // of a block
        const std::byte* from = words_ + c / columns * strip_rows * word;
        for (std::int64_t i = 0; i < n; i += columns, from += strip_rows * word) {
            std::uint32_t bytes = 0;
            std::memcpy(&bytes, from, sizeof bytes);
            if (halves) {
                const std::uint32_t low = bytes & 0x0f0f0f0fU, high = bytes >> 4 & 0x0f0f0f0fU;
                std::memcpy(levels + i, &low, sizeof low);
                std::memcpy(levels + i + word, &high, sizeof high);
            } else {
                std::memcpy(levels + i, &bytes, sizeof bytes);
            }
        }
    }

    const Weight& table_;
    std::int64_t first_scale_;
    const std::byte* words_;
};

/// Calls visitor(out, id) for this lane's share of the tokens.
template <class Visitor>
void for_tokens(const Embed& op, const Lane& lane, const Visitor& visitor) {
    const Range tokens = lane.share(op.out.size(0));
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
        visitor(op.out.data<float>() + t * op.out.stride(0),
                std::int64_t{op.token_ids.data<std::int32_t>()[t * op.token_ids.stride(0)]});
    }
}

}  // namespace

void run(const Embed& op, const Lane& lane) {
    const Weight& table = op.table;
    if (table.format == WeightFormat::dense) {
        return with_float(table.data.dtype(), [&]<class T>(T) {
            for_tokens(op, lane, [&](float* out, std::int64_t id) {
                widen_row(out, table.data.data<T>() + id * table.data.stride(0), table.columns(), op.scale, op.add);
            });
        });
    }
    for_tokens(op, lane, [&](float* out, std::int64_t id) {
        const PackedRow row(table, id);
        table.scales.dtype() == DType::f16 ? row.unpack<f16>(out, op.scale, op.add)
                                           : row.unpack<float>(out, op.scale, op.add);
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
