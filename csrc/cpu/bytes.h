// Vectors of bytes and their integer products: the only place (with simd/*_bytes.h) where those intrinsics are written.
//
// Every instruction set defines, with the same meaning:
//   IntVec   Vec::width int32; repeat(int32), to_float(IntVec)
//   ByteVec  4 · Vec::width bytes; load_bytes(const void*), repeat_bytes(const int8*): the same four in every lane,
//            low_halves(ByteVec), high_halves(ByteVec): 0 … 15
//   load_bytes_as_floats(const uint8*): Vec::width bytes, widened
//   to_int(Vec): rounded to nearest even, of numbers that int32 holds; IntVec + IntVec, sum(IntVec)
//   store_bytes(int8*, IntVec): numbers of at most 127 in magnitude
// and one or two ways to multiply, of which FastByteDot needs `fast_byte_dot_usable()` at run time:
//   Dot::signed_weights(ByteVec)      int8 weights as `add` wants them, each raised by Dot::raise
//   Dot::add(w, x, sums)              sums[i] + Σ w[4i + j] · x[4i + j] for j in 0 … 3, w so prepared, x int8
//   Dot::four(const int8*)            the same four bytes in every lane, as x of `add`
//   Dot::add_halves(w, x, sums)       the same for w in 0 … 15
// All sums are exact.
#pragma once

#include "cpu/simd.h"

#if defined(FERMI_ISA_AVX512)
#include "cpu/simd/avx512_bytes.h"
#elif defined(FERMI_ISA_AVX2)
#include "cpu/simd/avx2_bytes.h"
#elif defined(FERMI_ISA_NEON)
#include "cpu/simd/neon_bytes.h"
#else
#include "cpu/simd/portable_bytes.h"
#endif
