// Products with packed weights: integer dot products of int8 activations, scaled group by group.
//
// A vector of accumulators holds neighbouring outputs of one token; four columns are multiplied at a time, x being the
// same four bytes in every lane. Within a group the sums are integers, hence exact; groups are added in f32 in order of
// columns. So a result depends on its token and its weights only, whatever the tile, the thread or the instruction set.
//
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
/// The tile: a bundle of tokens × strips, whose integers stay in registers.
inline constexpr int byte_tile_tokens = static_cast<int>(bundle_rows);
inline constexpr int byte_tile_strips = Vec::width == 16 ? 2 : 1;

template <WeightFormat format>
using FormatTag = std::integral_constant<WeightFormat, format>;

/// One item's product. Scale: the dtype of the scales. The item's tokens begin with a bundle, or are one row of it.
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
        // Against one bundle, strips are read one after the other, as they lie in memory.
        const bool few = item_.tokens.size() <= x_.rows();
        for (; !few && strip + byte_tile_strips <= end; strip += byte_tile_strips) tokens<byte_tile_strips>(strip);
        for (; strip < end; ++strip) tokens<1>(strip);
    }

  private:
    using Byte = std::conditional_t<format == WeightFormat::int8, std::int8_t, std::uint8_t>;
    /// Steps of four columns in a block.
    static constexpr std::int64_t block_steps = format == WeightFormat::int8 ? 1 : 2;
    static constexpr std::int64_t block_bytes = 4 * strip_rows;

    /// Up to this many tokens, a strip is read as fast as memory gives, in order, which the processor foresees.
    static constexpr std::int64_t foreseen_tokens = 4;
    /// How far ahead of a single tile of more tokens memory is asked: what comes while it waits.
    static constexpr std::int64_t bytes_ahead = 16 << 10;

    /// All tokens with `Strips` strips, a bundle after the other. Of several, the first ask for the strips that come.
    template <int Strips>
    void tokens(std::int64_t strip) {
        read_biases<Strips>(strip);
        const Byte* data = data_ + strip * blocks_ * block_bytes;
        const Range range = item_.tokens;
        if (range.size() <= x_.rows()) {
            const Byte* ahead = range.size() > foreseen_tokens ? data + bytes_ahead : nullptr;
            return tile_of<byte_tile_tokens, Strips>(range.size(), range.begin, strip, ahead);
        }
        const Byte* ahead = data + Strips * blocks_ * block_bytes;
        int asked = 0;
        for (std::int64_t t = range.begin; t < range.end; t += x_.rows()) {
            tile_of<byte_tile_tokens, Strips>(std::min(x_.rows(), range.end - t), t, strip, ahead);
            ahead = ++asked < Strips ? ahead + blocks_ * block_bytes : nullptr;
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

    /// Where the strips of a tile lie, for each vector of outputs.
    template <int N>
    struct Strip {
        const Byte* data[N];
        const Scale* scales[N];
        const std::uint8_t* zeros[N];
    };

    template <int M, int Strips, bool grouped>
    void tile(std::int64_t token, std::int64_t strip, const Byte* ahead) const {
        constexpr int N = Strips * strip_vectors;
        Strip<N> w;
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const std::int64_t at = strip + n / strip_vectors, vector = n % strip_vectors * Vec::width;
            w.data[n] = data_ + at * blocks_ * block_bytes + 4 * vector;
            w.scales[n] = scales_ + at * groups_ * strip_rows + vector;
            w.zeros[n] = zeros_ == nullptr ? nullptr : zeros_ + at * groups_ * strip_rows + vector;
        }
        ByteRows::Place x = x_.at(token);
        Vec sums[M][N];
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) sums[m][n] = zero();
        }
        const std::int64_t blocks = x_.group() / (4 * block_steps);  // of a group
        for (std::int64_t g = 0; g < x_.groups(); ++g) {
            const Range part{g * blocks, std::min(blocks_, (g + 1) * blocks)};
            group<M, N, grouped>(x, part, w, grouped ? g * strip_rows : 0, ahead, sums);
            x.q += x_.group() * x_.rows();
            x.scales += x_.rows();
            x.sums += x_.rows();
        }
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const std::int64_t row = (strip + n / strip_vectors) * strip_rows + n % strip_vectors * Vec::width;
            const Vec scale = grouped ? broadcast(1.0F) : load(w.scales[n]);
            const Vec bias = load(biases_ + n * Vec::width);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                const Vec value = grouped ? sums[m][n] : sums[m][n] * scale;
                write(token + m, row, bias_ == nullptr ? value : value + bias);
            }
        }
    }

    /// One group of columns, the first of x: sums += scale of the weights · scale of x · Σ (q - zero) · x. `at`: where
    /// the group's scales lie.
    template <int M, int N, bool grouped>
    FERMI_INLINE void group(const ByteRows::Place& x, Range blocks, const Strip<N>& w, std::int64_t at,
                            const Byte* ahead, Vec (&sums)[M][N]) const {
        // The same zero for all weights is the products' starting point.
        constexpr std::int32_t zero_point = format == WeightFormat::int8 ? Dot::raise : 8;
        IntVec products[M][N];
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const IntVec start = repeat(zeros_ != nullptr ? 0 : -zero_point * x.sums[m]);
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) products[m][n] = start;
        }
        ahead != nullptr ? multiply<M, N, true>(x.q, blocks, w, ahead, products)
                         : multiply<M, N, false>(x.q, blocks, w, ahead, products);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const Vec scale = grouped ? load(w.scales[n] + at) : broadcast(1.0F);
            const Vec zeros = zeros_ != nullptr ? load_bytes_as_floats(w.zeros[n] + at) : zero();
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                Vec product = to_float(products[m][n]);
                if (zeros_ != nullptr) product = fma(zeros, broadcast(-static_cast<float>(x.sums[m])), product);
                if (grouped) product = product * scale;
                sums[m][n] = fma(product, broadcast(x.scales[m]), sums[m][n]);
            }
        }
    }

    template <int M, int N, bool fetch>
    FERMI_INLINE void multiply(const std::int8_t* x, Range blocks, const Strip<N>& w, const Byte* ahead,
                               IntVec (&sums)[M][N]) const {
        const std::int64_t step = 4 * x_.rows();
        const auto add = [&](const ByteVec(&weights)[N]) {
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                const auto four = Dot::four(x + 4 * m);
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) {
                    sums[m][n] = format == WeightFormat::int8 ? Dot::add(weights[n], four, sums[m][n])
                                                              : Dot::add_halves(weights[n], four, sums[m][n]);
                }
            }
            x += step;
        };
        for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
            if (fetch) prefetch_far(ahead + b * block_bytes);
            ByteVec low[N], high[N];
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) {
                const ByteVec packed = load_bytes(w.data[n] + b * block_bytes);
                if constexpr (format == WeightFormat::int8) {
                    low[n] = Dot::signed_weights(packed);
                } else {
                    low[n] = low_halves(packed);
                    high[n] = high_halves(packed);
                }
            }
            add(low);
            if constexpr (format == WeightFormat::int4) add(high);
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
