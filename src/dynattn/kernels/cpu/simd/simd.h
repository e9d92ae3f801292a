// One vector type for every instruction set: `Vec`, kWidth floats, and `Mask`, one truth value a lane.
//
// The kernels are compiled once for each instruction set. Everything that they include lives in the set's own namespace
// (DYNATTN_NAMESPACE), so that no inline function compiled for one set can be linked into another.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define DYNATTN_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#if !defined(DYNATTN_NAMESPACE)
#define DYNATTN_NAMESPACE avx512
#endif
#include "simd/avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#if !defined(DYNATTN_NAMESPACE)
#define DYNATTN_NAMESPACE avx2
#endif
#include "simd/avx2.h"
#elif defined(DYNATTN_NEON)  // and not __ARM_NEON, which every build for 64-bit ARM has
#if !defined(DYNATTN_NAMESPACE)
#define DYNATTN_NAMESPACE neon
#endif
#include "simd/neon.h"
#else
#if !defined(DYNATTN_NAMESPACE)
#define DYNATTN_NAMESPACE portable
#endif
#define DYNATTN_PORTABLE
#include "simd/portable.h"
#endif

namespace dynattn::DYNATTN_NAMESPACE {

template <class T>
DYNATTN_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}

template <class T>
DYNATTN_INLINE T larger(T a, T b) {
  return a > b ? a : b;
}

DYNATTN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DYNATTN_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// 2^(x · c) for x <= 0 or little above, x = -inf included; exactly 0 below 2^-127.
//
// x is clamped to `floor` = -127 / c. Adding 1.5 · 2^23 + 127 rounds x · c to an integer n in the low bits of the
// sum, biased as a float's exponent is, so that a shift makes 2^n of it. 2^f on [-1/2, 1/2] is the polynomial of
// degree 5 whose largest relative error is smallest, 7.5e-8.
DYNATTN_INLINE Vec exp2_scaled(Vec x, Vec c, Vec floor) {
  const Vec magic = broadcast(12582912.0f + 127.0f);
  x = max(x, floor);
  const Vec z = fmadd(x, c, magic);
  const Vec f = fmsub(x, c, sub(z, magic));
  Vec y = fmadd(broadcast(1.3276473e-3f), f, broadcast(9.675541e-3f));
  y = fmadd(y, f, broadcast(5.550713e-2f));
  y = fmadd(y, f, broadcast(2.402212e-1f));
  y = fmadd(y, f, broadcast(6.931469e-1f));
  y = fmadd(y, f, broadcast(1.0000001f));
  return mul(y, low_bits_to_exponent(z));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
