// Register tiles of dot products: the inner loop of linear and of attention's scores.
//
// Each output has one vector accumulator that walks along k, then one fixed horizontal sum. So an output's rounding
// depends on its two operands only: not on the tile it was computed in, the number of rows, or the thread.
//
// Loops over accumulators are unrolled by pragma: only then do compilers keep the array in registers.
#pragma once

#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

/// How a vector's worth of x and w is multiplied: `step` elements per accumulation.
/// x is f32 and w any float: products and sums in f32.
template <class W>
struct FloatDot {
    using X = float;
    using Panel = FloatDot<float>;  // what multiplies weights that were widened beforehand
    static constexpr int step = Vec::width;
    struct Operand {
        Vec value;
    };
    static FERMI_INLINE Operand load_x(const float* from) { return {load(from)}; }
    static FERMI_INLINE Operand load_x(const float* from, int count) { return {load_partial(from, count)}; }
    static FERMI_INLINE Operand load_w(const W* from) { return {load(from)}; }
    static FERMI_INLINE Operand load_w(const W* from, int count) { return {load_partial(from, count)}; }
    static FERMI_INLINE Vec accumulate(Operand x, Operand w, Vec sum) { return fma(x.value, w.value, sum); }
};

/// x and w are bf16; pairs of exact products are added to an f32 sum.
struct BFloat16Dot {
    using X = bf16;
    using Panel = BFloat16Dot;
    static constexpr int step = 2 * Vec::width;
#if defined(FERMI_ISA_AVX512)
    static FERMI_INLINE PairVec load_x(const bf16* from) { return load_pairs(from); }
    static FERMI_INLINE PairVec load_x(const bf16* from, int count) { return load_pairs_partial(from, count); }
    static FERMI_INLINE PairVec load_w(const bf16* from) { return load_pairs(from); }
    static FERMI_INLINE PairVec load_w(const bf16* from, int count) { return load_pairs_partial(from, count); }
    static FERMI_INLINE Vec accumulate(PairVec x, PairVec w, Vec sum) { return dot_pairs(x, w, sum); }
    static FERMI_INLINE PairVec none() { return zero_pairs(); }
    static FERMI_INLINE PairVec repeat(const bf16* pair) { return repeat_pair(pair); }
#endif
};

/// sums[m][n] += Σ x[m][k] · w[n][k] for k in [0, count). `rows` of x lie `x_stride` apart; w has one pointer per row,
/// whose steps lie `spread` steps apart. ahead(k) is called before step k: the place to prefetch.
template <class Dot, int spread = 1, int M, int N, class W, class Ahead>
FERMI_INLINE void accumulate_tile(Vec (&sums)[M][N], const typename Dot::X* x, std::int64_t x_stride,
                                  const W* const (&w)[N], std::int64_t count, const Ahead& ahead) {
    const auto advance = [&](std::int64_t k, auto... partial) {
        ahead(k);
        decltype(Dot::load_w(w[0])) column[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) column[n] = Dot::load_w(w[n] + k * spread, partial...);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const auto row = Dot::load_x(x + m * x_stride + k, partial...);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = Dot::accumulate(row, column[n], sums[m][n]);
        }
    };
    std::int64_t k = 0;
    for (; k + Dot::step <= count; k += Dot::step) advance(k);
    if (k < count) advance(k, static_cast<int>(count - k));
}

template <int M, int N>
FERMI_INLINE void set_zero(Vec (&sums)[M][N]) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sums[m][n] = zero();
    }
}

/// out[n] = sum(sums[n])
template <int N>
FERMI_INLINE void sum_row(const Vec (&sums)[N], float (&out)[N]) {
    int n = 0;
#pragma GCC unroll 8
    for (; n + 4 <= N; n += 4) sum_4(sums[n], sums[n + 1], sums[n + 2], sums[n + 3], out + n);
#pragma GCC unroll 8
    for (; n < N; ++n) out[n] = sum(sums[n]);
}

}  // namespace fermi::cpu::FERMI_ISA
