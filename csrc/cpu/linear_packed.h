// Products with packed weights: integer dot products of int8 activations, scaled group by group.
//
// A vector of accumulators holds neighbouring outputs of one token; four columns are multiplied at a time, x being the
// same four bytes in every lane. Within a group the sums are integers, hence exact; groups are added in f32 in order of
// columns. So a result depends on its token and its weights only, whatever the tile, the thread or the instruction set.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/bytes.h"
#include "cpu/linear_inputs.h"
#include "cpu/linear_item.h"
#include "cpu/simd.h"
#include "weight.h"

namespace fermi::cpu::FERMI_ISA {

/// Vectors across a strip.
inline constexpr int strip_vectors = static_cast<int>(strip_rows) / Vec::width;
/// The tile of many tokens: tokens × strips that keep the integer accumulators in registers.
inline constexpr int byte_tile_tokens = Vec::width == 16 ? 6 : 4;
inline constexpr int byte_tile_strips = Vec::width == 16 ? 2 : 1;

template <WeightFormat format>
using FormatTag = std::integral_constant<WeightFormat, format>;

/// One item's product. Scale: the dtype of the scales.
template <class Dot, WeightFormat format, class Scale>
class PackedProduct {
  public:
    PackedProduct(const ByteRows& x, const Weight& weight, const Tensor* bias, const Item& item, const Results& results)
        : x_(x),
          data_(weight.data.data<Byte>()),
          scales_(weight.scales.data<Scale>()),
          zeros_(weight.zeros.defined() ? weight.zeros.data<std::uint8_t>() : nullptr),
          blocks_(weight.data.size(1)),
          groups_(weight.scales.size(1)),
          rows_(weight.rows()),
          grouped_(weight.group() != 0),
          bias_(bias),
          item_(item),
          results_(results) {}

    /// The item's outputs begin with a strip.
    void run() {
        std::int64_t strip = item_.outputs.begin / strip_rows;
        const std::int64_t end = (item_.outputs.end + strip_rows - 1) / strip_rows;
        const bool few = item_.tokens.end - item_.tokens.begin <= few_tokens;
        for (; !few && strip + byte_tile_strips <= end; strip += byte_tile_strips) tokens<byte_tile_strips>(strip);
        for (; strip < end; ++strip) tokens<1>(strip);
    }

  private:
    using Byte = std::conditional_t<format == WeightFormat::int8, std::int8_t, std::uint8_t>;
    static constexpr std::int64_t block_columns = format == WeightFormat::int8 ? 4 : 8;
    static constexpr std::int64_t block_bytes = 4 * strip_rows;
    /// Up to this many tokens, strips are read one after the other, as they lie in memory.
    static constexpr int few_tokens = 2;

    /// All tokens with `Strips` strips, in tiles of nearly equal size. A single tile reads as fast as memory gives, in
    /// order, which the processor foresees. Of several, the first ask for the strips that come.
    template <int Strips>
    void tokens(std::int64_t strip) {
        read_biases<Strips>(strip);
        const std::int64_t count = item_.tokens.end - item_.tokens.begin;
        const std::int64_t tiles = (count + byte_tile_tokens - 1) / byte_tile_tokens;
        std::int64_t t = item_.tokens.begin;
        for (std::int64_t i = 0; i < tiles; ++i) {
            const std::int64_t next = item_.tokens.begin + count * (i + 1) / tiles;
            const bool asks = tiles > 1 && i < Strips;
            const Byte* ahead = asks ? data_ + (strip + Strips + i) * blocks_ * block_bytes : nullptr;
            tile_of<byte_tile_tokens, Strips>(next - t, t, strip, ahead);
            t = next;
        }
    }

    /// Once for all tokens of the outputs of `Strips` strips.
    template <int Strips>
    void read_biases(std::int64_t strip) {
        if (bias_ == nullptr) return;
        const std::int64_t row = strip * strip_rows;
        const std::int64_t count = std::min<std::int64_t>(Strips * strip_rows, rows_ - row);
        for (std::int64_t i = 0; i < count; ++i) biases_[i] = bias_of(bias_, row + i);
    }

    /// Dispatches on the number of tokens.
    template <int M, int Strips>
    void tile_of(std::int64_t count, std::int64_t token, std::int64_t strip, const Byte* ahead) const {
        if constexpr (M > 1) {
            if (count < M) return tile_of<M - 1, Strips>(count, token, strip, ahead);
        }
        grouped_ ? tile<M, Strips, true>(token, strip, ahead) : tile<M, Strips, false>(token, strip, ahead);
    }

    template <int M, int Strips, bool grouped>
    void tile(std::int64_t token, std::int64_t strip, const Byte* ahead) const {
        constexpr int N = Strips * strip_vectors;
        const Byte* w[N];
        for (int n = 0; n < N; ++n) {
            w[n] = data_ + (strip + n / strip_vectors) * blocks_ * block_bytes + n % strip_vectors * 4 * Vec::width;
        }
        const std::int8_t* x[M];
        for (int m = 0; m < M; ++m) x[m] = x_.q(token + m);
        Vec sums[M][N];
        for (auto& row : sums) {
            for (Vec& each : row) each = zero();
        }
        for (std::int64_t g = 0; g < x_.groups(); ++g) {
            const Range blocks{g * x_.group / block_columns, std::min(blocks_, (g + 1) * x_.group / block_columns)};
            group<M, N, grouped>(token, strip, g, blocks, w, x, ahead, sums);
        }
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const std::int64_t row = (strip + n / strip_vectors) * strip_rows + n % strip_vectors * Vec::width;
            const Vec scale = grouped ? broadcast(1.0F) : scale_of(strip, 0, n);
            const Vec bias = load(biases_ + n * Vec::width);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const Vec value = grouped ? sums[m][n] : sums[m][n] * scale;
                write(token + m, row, bias_ == nullptr ? value : value + bias);
            }
        }
    }

    Vec scale_of(std::int64_t strip, std::int64_t group, int n) const {
        return load(scales_ + ((strip + n / strip_vectors) * groups_ + group) * strip_rows +
                    n % strip_vectors * Vec::width);
    }

    /// One group of columns: sums += scale of the weights · scale of x · Σ (q - zero) · x.
    template <int M, int N, bool grouped>
    FERMI_INLINE void group(std::int64_t token, std::int64_t strip, std::int64_t g, Range blocks,
                            const Byte* const (&w)[N], const std::int8_t* const (&x)[M], const Byte* ahead,
                            Vec (&sums)[M][N]) const {
        // The same zero for all weights is the products' starting point.
        constexpr std::int32_t zero_point = format == WeightFormat::int8 ? Dot::raise : 8;
        IntVec products[M][N];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const IntVec start = repeat(zeros_ != nullptr ? 0 : -zero_point * x_.sums(token + m)[g]);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) products[m][n] = start;
        }
        ahead != nullptr ? multiply<M, N, true>(blocks, w, x, ahead, products)
                         : multiply<M, N, false>(blocks, w, x, ahead, products);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const Vec scale = grouped ? scale_of(strip, g, n) : broadcast(1.0F);
            const Vec zeros = zeros_ != nullptr ? zeros_of(strip, grouped ? g : 0, n) : zero();
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                Vec product = to_float(products[m][n]);
                if (zeros_ != nullptr) {
                    product = fma(zeros, broadcast(-static_cast<float>(x_.sums(token + m)[g])), product);
                }
                if (grouped) product = product * scale;
                sums[m][n] = fma(product, broadcast(x_.scales(token + m)[g]), sums[m][n]);
            }
        }
    }

    Vec zeros_of(std::int64_t strip, std::int64_t group, int n) const {
        return load_bytes_as_floats(zeros_ + ((strip + n / strip_vectors) * groups_ + group) * strip_rows +
                                    n % strip_vectors * Vec::width);
    }

    template <int M, int N, bool fetch>
    FERMI_INLINE void multiply(Range blocks, const Byte* const (&w)[N], const std::int8_t* const (&x)[M],
                               const Byte* ahead, IntVec (&sums)[M][N]) const {
        for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
            if (fetch) prefetch_far(ahead + b * block_bytes);
            ByteVec low[N], high[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) {
                const Byte* from = w[n] + b * block_bytes;
                const ByteVec packed = load_bytes(from);
                if constexpr (format == WeightFormat::int8) {
                    low[n] = Dot::signed_weights(packed);
                } else {
                    low[n] = low_halves(packed);
                    high[n] = high_halves(packed);
                }
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const ByteVec four = repeat_bytes(x[m] + b * block_columns);
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) {
                    sums[m][n] = format == WeightFormat::int8 ? Dot::add(low[n], four, sums[m][n])
                                                              : Dot::add_halves(low[n], four, sums[m][n]);
                }
                if constexpr (format == WeightFormat::int4) {
                    const ByteVec next = repeat_bytes(x[m] + b * block_columns + 4);
#pragma GCC unroll 8
                    for (int n = 0; n < N; ++n) sums[m][n] = Dot::add_halves(high[n], next, sums[m][n]);
                }
            }
        }
    }

    void write(std::int64_t token, std::int64_t row, Vec value) const {
        const int count = static_cast<int>(std::min<std::int64_t>(Vec::width, rows_ - row));
        if (count <= 0) return;
        float* to = results_.data + (token - item_.tokens.begin) * results_.stride + (row - item_.outputs.begin);
        if (count == Vec::width) {
            store(to, results_.add ? load(to) + value : value);
        } else {
            store_partial(to, results_.add ? load_partial(to, count) + value : value, count);
        }
    }

    ByteRows x_;
    const Byte* data_;
    const Scale* scales_;
    const std::uint8_t* zeros_;  // null: all the same
    std::int64_t blocks_;        // of 64 bytes in a strip
    std::int64_t groups_;        // scales of a row
    std::int64_t rows_;
    bool grouped_;
    const Tensor* bias_;  // null: none
    Item item_;
    Results results_;
    float biases_[byte_tile_strips * strip_rows] = {};  // of the outputs at work
};

}  // namespace fermi::cpu::FERMI_ISA
