// Sixteen queries side by side: `Lanes` of floats, `Words` of 32 bits, and one bit a lane for truth values.
//
// A row of an accumulator tile is one `Lanes`. A word holds two neighbouring keys' bfloat16 numbers of one query, the
// lower key in its low half, as a tile of pairs has them.
#pragma once

#include "simd/simd.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kLanes = 16;
using LaneMask = uint16_t;
constexpr LaneMask kAllLanes = 0xffff;

}  // namespace dynattn::DYNATTN_NAMESPACE

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "tiles/lanes_avx512.h"
#else
#include "tiles/lanes_portable.h"
#endif

namespace dynattn::DYNATTN_NAMESPACE {

// Two keys' bfloat16 numbers, each in the low half of its word, as pairs.
DYNATTN_INLINE Words pair(Words low, Words high) { return either(low, shift_left<16>(high)); }

// a + b where the bit is set, else a.
DYNATTN_INLINE Words add_where(LaneMask m, Words a, Words b) { return select(m, add(a, b), a); }
DYNATTN_INLINE Lanes add_where(LaneMask m, Lanes a, Lanes b) { return select(m, add(a, b), a); }

// Rows of words become columns.
DYNATTN_INLINE void transpose_words(Words rows[kLanes]) {
  Lanes moved[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) moved[i] = floats_of(rows[i]);
  transpose(moved);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) rows[i] = words_of(moved[i]);
}

// Floats that are not NaN as bfloat16 numbers, in the low half of each word: to nearest, ties to even.
DYNATTN_INLINE Words rounded(Lanes x) {
  const Words odd = both(shift_right<16>(words_of(x)), broadcast_words(1));
  return shift_right<16>(add(words_of(x), add(odd, broadcast_words(0x7fffu))));
}

// The bfloat16 number in the low half of each word, as a float.
DYNATTN_INLINE Lanes low_half(Words x) { return floats_of(shift_left<16>(x)); }

// 2^y, exactly 0 below 2^-127 and infinite from 2^128 on; relative error 2e-7. NaN gives 0.
//
// Adding 1.5 · 2^23 + 127 rounds y to an integer in the low bits of the sum, biased as a float's exponent is, so that a
// shift makes a power of two of it. The polynomial on [-1/2, 1/2] is simd/simd.h's.
DYNATTN_INLINE Lanes exp2_lanes(Lanes y) {
  const Lanes magic = broadcast_lanes(12582912.0f + 127.0f);
  y = min(max(y, broadcast_lanes(-127.0f)), broadcast_lanes(128.0f));
  const Lanes z = add(y, magic);
  const Lanes f = sub(y, sub(z, magic));
  Lanes p = fmadd(broadcast_lanes(1.3276473e-3f), f, broadcast_lanes(9.675541e-3f));
  p = fmadd(p, f, broadcast_lanes(5.550713e-2f));
  p = fmadd(p, f, broadcast_lanes(2.402212e-1f));
  p = fmadd(p, f, broadcast_lanes(6.931469e-1f));
  p = fmadd(p, f, broadcast_lanes(1.0000001f));
  return mul(p, floats_of(shift_left<23>(words_of(z))));
}

// The bits of 2^(t - 127) as a bfloat16 number, in the low half of each word, for t below 256; exactly 0 for t <= 0.
// Larger t sets bits above the 15th, which the caller has to look for.
//
// A bfloat16 number is its exponent and seven bits of fraction, so 128 · log2 of it is its own bits, except for the
// curvature of 2^f over a unit: the product with f² - f corrects that, and the conversion to an integer rounds. Error
// 3.6e-3 of the value, of which rounding to bfloat16 alone is up to 3.9e-3.
DYNATTN_INLINE Words exp2_bfloat16(Lanes t) {
  t = max(t, broadcast_lanes(0.0f));
  const Lanes f = above_floor(t);
  const Lanes curve = fmadd(f, broadcast_lanes(0.0784f), broadcast_lanes(0.3045f));
  return round_to_words(mul(broadcast_lanes(128.0f), fmadd(fmsub(f, f, f), curve, t)));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
