// Products of few tokens with bf16 weights where the machine multiplies pairs of bf16.
//
// x is a sum of two bf16, so it keeps 16 bits of its significand, and products are exact; sums are f32. Each row of
// weights is read from its begin to its end, in the order of memory, as its prefetchers like best: this reads faster
// than several rows side by side, and needs half of the instructions that widening to f32 does.
#pragma once

#include "cpu/linear_dense.h"
#include "cpu/product.h"
#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

/// One item's product. Rows of x: term_stride(columns) high terms, then as many low ones. A template, so that libraries
/// without such a Dot compile nothing of it.
template <class Dot>
class TermsProduct {
  public:
    TermsProduct(const DenseRows<bf16>& x, const Weight& weight, const Tensor* bias, const Item& item,
                 const Results& results)
        : x_(x),
          w_(weight.data.data<bf16>()),
          stride_(weight.data.stride(0)),
          columns_(weight.columns()),
          bias_(bias),
          item_(item),
          results_(results) {}

    void run() const {
        for (std::int64_t row = item_.outputs.begin; row < item_.outputs.end; ++row) {
            std::int64_t token = item_.tokens.begin;
            for (; token + 2 <= item_.tokens.end; token += 2) outputs<2>(token, row);
            if (token < item_.tokens.end) outputs<1>(token, row);
        }
    }

  private:
    static constexpr int steps = 4;  // side by side: sums that do not wait for each other

    /// One output of M tokens.
    template <int M>
    void outputs(std::int64_t token, std::int64_t row) const {
        const bf16* w = w_ + row * stride_;
        Vec sums[2 * M][steps];
        set_zero(sums);
        const auto advance = [&](std::int64_t k, int step, auto... partial) {
            const auto column = Dot::load_w(w + k, partial...);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const bf16* high = x_.row(token + m) + k;
                sums[2 * m][step] = Dot::accumulate(Dot::load_x(high), column, sums[2 * m][step]);
                const bf16* low = high + term_stride(columns_);
                sums[2 * m + 1][step] = Dot::accumulate(Dot::load_x(low), column, sums[2 * m + 1][step]);
            }
        };
        std::int64_t k = 0;
        for (; k + steps * Dot::step <= columns_; k += steps * Dot::step) {
#pragma GCC unroll 4
            for (int step = 0; step < steps; ++step) advance(k + step * Dot::step, step);
        }
        for (; k + Dot::step <= columns_; k += Dot::step) advance(k, 0);
        if (k < columns_) advance(k, 0, static_cast<int>(columns_ - k));
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            Vec totals[steps];
            for (int step = 0; step < steps; ++step) totals[step] = sums[2 * m][step] + sums[2 * m + 1][step];
            write(token + m, row, sum((totals[0] + totals[1]) + (totals[2] + totals[3])));
        }
    }

    FERMI_INLINE void write(std::int64_t token, std::int64_t row, float total) const {
        float* out = results_.data + (token - item_.tokens.begin) * results_.stride + (row - item_.outputs.begin);
        const float value = total + bias_of(bias_, row);
        *out = results_.add ? *out + value : value;
    }

    DenseRows<bf16> x_;
    const bf16* w_;
    std::int64_t stride_;
    std::int64_t columns_;
    const Tensor* bias_;  // null: none
    Item item_;
    Results results_;
};

}  // namespace fermi::cpu::FERMI_ISA
