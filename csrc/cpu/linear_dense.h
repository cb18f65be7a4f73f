// Products with dense weights, [rows, columns] as in the checkpoint, walked along their rows.
//
// With few tokens the weights' memory is the limit: it is read in order, each row once, against all tokens. With many
// the products are: an item's x stays in the second-level cache while its weight rows pass by, some rows and columns of
// them at a time as a panel, a copy in the first level that is contiguous (rows whose addresses differ by a power of
// two would drive each other out) and, where products are of f32, already widened.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/linear_item.h"
#include "cpu/product.h"
#include "cpu/simd.h"
#include "weight.h"

namespace fermi::cpu::FERMI_ISA {

/// Rows of x in the form that a Dot wants them.
template <class X>
struct DenseRows {
    const X* data;
    std::int64_t stride;  // elements from token to token
    const X* row(std::int64_t token) const { return data + token * stride; }
};

/// Of each row in a panel: tile_columns of them leave room for x in the first-level cache.
inline constexpr std::size_t panel_row_bytes = 2048;

/// One item's product: x, W, and the results.
template <class Dot, class W>
class DenseProduct {
  public:
    /// Up to this many tokens, weights are read in order, `stream_rows` of them side by side.
    static constexpr int few_tokens = 2;
    static constexpr int stream_rows = tile_columns < 4 ? tile_columns : 4;
    /// From this many tokens on, panels are worth their copy.
    static constexpr int panel_tokens = 24;
    using PanelW = std::conditional_t<std::is_same_v<typename Dot::X, float>, float, W>;
    static constexpr std::int64_t panel_columns = panel_row_bytes / static_cast<std::int64_t>(sizeof(PanelW));

    /// `saved`: a vector for each of the item's tokens and tile_columns, then a panel.
    DenseProduct(const DenseRows<typename Dot::X>& x, const Weight& weight, const Tensor* bias, const Item& item,
                 const Results& results, Vec* saved)
        : x_(x),
          w_(weight.data.data<W>()),
          stride_(weight.data.stride(0)),
          columns_(weight.columns()),
          bias_(bias),
          item_(item),
          results_(results),
          saved_(saved),
          panel_(reinterpret_cast<PanelW*>(saved + (item.tokens.end - item.tokens.begin) * tile_columns)) {}

    void run() {
        const std::int64_t count = item_.tokens.end - item_.tokens.begin;
        if (count <= few_tokens) return outputs<few_tokens, stream_rows>(item_.outputs.begin);
        if (count < panel_tokens) return outputs<tile_rows, tile_columns>(item_.outputs.begin);
        panels<tile_columns>(item_.outputs.begin);
    }

  private:
    using Sums = Vec*;

    /// The outputs from `row` on, N at a time, in one pass over the columns. The rows that come are asked for.
    template <int M, int N>
    void outputs(std::int64_t row) {
        for (; row + N <= item_.outputs.end; row += N) {
            read_biases<N>(row);
            const W* w[N];
            for (int n = 0; n < N; ++n) w[n] = w_ + (row + n) * stride_;
            const auto fetch = [&](std::int64_t k) {
                for (int n = 0; n < N; ++n) prefetch_far(w[n] + k + N * stride_);
            };
            tokens<M, N, Dot, 1>(item_.tokens, row, {0, columns_}, w, saved_, fetch);
        }
        if constexpr (N > 1) outputs<M, 1>(row);
    }

    /// The outputs from `row` on, N at a time, a panel of their columns after the other.
    template <int N>
    void panels(std::int64_t row) {
        constexpr int step = Dot::Panel::step;
        for (; row + N <= item_.outputs.end; row += N) {
            read_biases<N>(row);
            std::int64_t begin = 0;
            do {
                const Range columns{begin, std::min(columns_, begin + panel_columns)};
                fill_panel<N>(row, columns);
                const PanelW* w[N];
                for (int n = 0; n < N; ++n) w[n] = panel_ + n * step;
                // While the first tokens are multiplied, what comes after this panel is asked for.
                const W* next = columns.end < columns_ ? w_ + row * stride_ + columns.end : w_ + (row + N) * stride_;
                const auto fetch = [&](std::int64_t k) {
                    for (int n = 0; n < N; ++n) prefetch_far(next + n * stride_ + k);
                };
                tokens<tile_rows, N, typename Dot::Panel, N>(item_.tokens, row, columns, w, saved_, fetch);
                begin = columns.end;
            } while (begin < columns_);
        }
        if constexpr (N > 1) panels<1>(row);
    }

    /// Once for all tokens of the outputs from `row` on.
    template <int N>
    void read_biases(std::int64_t row) {
        for (int n = 0; n < N; ++n) biases_[n] = bias_of(bias_, row + n);
    }

    /// Copies some columns of N rows, a step of each row after the other.
    template <int N>
    void fill_panel(std::int64_t row, Range columns) const {
        constexpr int step = Dot::Panel::step;
        for (int n = 0; n < N; ++n) {
            const W* from = w_ + (row + n) * stride_ + columns.begin;
            const std::int64_t count = columns.end - columns.begin;
            for (std::int64_t k = 0; k < count; k += step) {
                PanelW* to = panel_ + k * N + n * step;
                const auto rest = static_cast<int>(std::min<std::int64_t>(step, count - k));
                if constexpr (std::is_same_v<W, PanelW>) {
                    std::copy_n(from + k, rest, to);
                } else {
                    rest == step ? store(to, load(from + k)) : store_partial(to, load_partial(from + k, rest), rest);
                }
            }
        }
    }

    /// N outputs for some tokens, M at a time, then fewer, over some columns of the weights at `w`. Only the first
    /// tokens fetch.
    template <int M, int N, class Product, int spread, class AnyW, class Fetch>
    void tokens(Range range, std::int64_t row, Range columns, const AnyW* const (&w)[N], Sums saved,
                const Fetch& fetch) const {
        const auto pass = [](std::int64_t) {};
        std::int64_t t = range.begin;
        if (t + M <= range.end) {
            tile<M, N, Product, spread>(t, row, columns, w, saved, fetch);
            t += M;
            saved += M * N;
        }
        for (; t + M <= range.end; t += M) {
            tile<M, N, Product, spread>(t, row, columns, w, saved, pass);
            saved += M * N;
        }
        if constexpr (M > 1) {
            if (t < range.end) tokens<M - 1, N, Product, spread>({t, range.end}, row, columns, w, saved, fetch);
        }
    }

    /// M tokens × N outputs. Accumulators come from and go to `saved`, but for the first columns and for the last ones,
    /// after which the results are written.
    template <int M, int N, class Product, int spread, class AnyW, class Ahead>
    void tile(std::int64_t token, std::int64_t row, Range columns, const AnyW* const (&w)[N], Sums saved,
              const Ahead& ahead) const {
        Vec sums[M][N];
        set_zero(sums);
        if (columns.begin != 0) {
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) sums[m][n] = saved[m * N + n];
            }
        }
        accumulate_tile<Product, spread>(sums, x_.row(token) + columns.begin, x_.stride, w, columns.end - columns.begin,
                                         ahead);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            if (columns.end == columns_) {
                write(token + m, row, sums[m]);
            } else {
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) saved[m * N + n] = sums[m][n];
            }
        }
    }

    template <int N>
    FERMI_INLINE void write(std::int64_t token, std::int64_t row, const Vec (&sums)[N]) const {
        float totals[N];
        sum_row(sums, totals);
        float* out = results_.data + (token - item_.tokens.begin) * results_.stride + (row - item_.outputs.begin);
        for (int n = 0; n < N; ++n) {
            const float value = totals[n] + biases_[n];
            out[n] = results_.add ? out[n] + value : value;
        }
    }

    DenseRows<typename Dot::X> x_;
    const W* w_;
    std::int64_t stride_;
    std::int64_t columns_;
    const Tensor* bias_;  // null: none
    Item item_;
    Results results_;
    Sums saved_;
    PanelW* panel_;
    float biases_[tile_columns] = {};  // of the outputs at work
};

/// Bytes that a product wants at `saved` for an item of some tokens.
inline std::size_t dense_scratch(std::int64_t item_tokens) {
    return static_cast<std::size_t>(item_tokens) * tile_columns * sizeof(Vec) + panel_row_bytes * tile_columns;
}

}  // namespace fermi::cpu::FERMI_ISA
