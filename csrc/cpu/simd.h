// One vector type per instruction set: the only place (with simd/) where intrinsics are written.
//
// `Vec` holds Vec::width floats. Every instruction set defines, with the same meaning:
//   zero(), broadcast(float), load(const T*), load_partial(const T*, count), store(T*, Vec), store_partial(T*, Vec,
//   count)
//       for T = float, f16, bf16; count < width, missing lanes are zero; stores round to nearest even
//       for T = std::int8_t as well: the integer; stored values must lie in [-128, 127]
//   load_two(const T*), load_two_partial(const T*, count ≤ 2 · width): 2 · width elements as two vectors, in the order
//       that costs least; to_two(Vec&, Vec&, T), from_two(Vec&, Vec&, T): elements in order to that order, and back
//   + - * /, fma(a, b, c) = a·b + c, maximum(a, b), minimum(a, b): the second operand where one is NaN
//   sum(Vec): lanes added as a tree, i with i + width/2, then i + width/4, …: the one order of every reduction
//   sum_4(a, b, c, d, float*): four sums, bit for bit those of `sum`
//   sum_scores(const Vec (&)[M][N], float*, stride): M × N sums, bit for bit those of `sum`, N at best score_columns(M)
//   largest(Vec), select_less(a, b, x, y) = a < b ? x : y
//   round_even(Vec), times_power_of_two(Vec, Vec): building blocks of exp
//   prefetch(const void*): the cache line will be read soon; prefetch_far: into the second level
//   tile_rows, tile_columns: the largest product tile whose accumulators stay in registers
//   bf16 products (see BFloat16Dot): `has_bf16_dot` says whether this library has them, `bf16_dot_usable()` the machine
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/half.h"

#define FERMI_INLINE inline __attribute__((always_inline))

namespace fermi::cpu::FERMI_ISA {

/// GCC takes a function that does nothing but prefetch for one without effects, and drops calls of it. Not of one that
/// calls this.
FERMI_INLINE void keep_call() {
    __asm__ volatile("");
}

}  // namespace fermi::cpu::FERMI_ISA

#if defined(FERMI_ISA_AVX512)
#include "cpu/simd/avx512.h"
#elif defined(FERMI_ISA_AVX2)
#include "cpu/simd/avx2.h"
#elif defined(FERMI_ISA_NEON)
#include "cpu/simd/neon.h"
#elif defined(FERMI_ISA_PORTABLE)
#include "cpu/simd/portable.h"
#else
#error "define one FERMI_ISA_…"
#endif

namespace fermi::cpu::FERMI_ISA {

// Two vectors in order, where an instruction set knows nothing better.
template <class T>
FERMI_INLINE Two load_two(const T* from) {
    return {load(from), load(from + Vec::width)};
}
template <class T>
FERMI_INLINE Two load_two_partial(const T* from, int count) {
    if (count < Vec::width) return {load_partial(from, count), zero()};
    const int rest = count - Vec::width;
    return {load(from), rest == Vec::width ? load(from + Vec::width) : load_partial(from + Vec::width, rest)};
}
template <class T>
FERMI_INLINE void to_two(Vec&, Vec&, T) {}
template <class T>
FERMI_INLINE void from_two(Vec&, Vec&, T) {}

#if !defined(FERMI_ISA_AVX512)
/// N of sum_scores for M rows.
constexpr int score_columns(int) {
    return 4;
}
/// out[m · stride + n] = sum(sums[m][n])
template <int M, int N>
FERMI_INLINE void sum_scores(const Vec (&sums)[M][N], float* out, std::int64_t stride) {
    for (int m = 0; m < M; ++m) {
        if constexpr (N == 4) {
            sum_4(sums[m][0], sums[m][1], sums[m][2], sums[m][3], out + m * stride);
        } else {
            for (int n = 0; n < N; ++n) out[m * stride + n] = sum(sums[m][n]);
        }
    }
}
#endif

}  // namespace fermi::cpu::FERMI_ISA
