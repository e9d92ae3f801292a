// Products of pairs of bfloat16 numbers, two of them added to each lane's sum: VDPBF16PS where the build has it, and
// plain C++ in the portable build, by which tests run what is made of them on every machine. The instruction takes
// numbers below 2^-126 as 0 and adds in an order of its own. Other builds have none: DYNATTN_PAIRS says which do.
#pragma once

#include "common/dtypes.h"

namespace dynattn::DYNATTN_NAMESPACE {

#if defined(__AVX512BF16__)

#define DYNATTN_PAIRS
using Pairs = __m512i;

DYNATTN_INLINE Pairs load_pairs(const uint16_t* p) { return _mm512_loadu_si512(p); }

// Two numbers in every lane.
DYNATTN_INLINE Pairs broadcast_pair(const uint16_t* p) {
  int32_t two;
  memcpy(&two, p, sizeof two);
  return _mm512_set1_epi32(two);
}

DYNATTN_INLINE Vec add_products(Vec sum, Pairs a, Pairs b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Numbers of two rows side by side: a0 b0 a1 b1 …, the first half of them in `low`.
DYNATTN_INLINE void interleave_rows(Pairs a, Pairs b, Pairs& low, Pairs& high) {
  alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first = _mm512_load_si512(kLow);
  low = _mm512_permutex2var_epi16(a, first, b);
  high = _mm512_permutex2var_epi16(a, _mm512_add_epi16(first, _mm512_set1_epi16(16)), b);
}

// 2 · kWidth floats as rounded.
DYNATTN_INLINE void store_rounded(uint16_t* to, Vec low, Vec high) {
  _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

// Of four vectors the sums by quarter, and of kWidth / 4 such vectors each lane's: the two steps of sum_each().
DYNATTN_INLINE Vec sum_four(const Vec r[4]) {
  const Vec s = add(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
  const Vec t = add(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
  return add(unpack_pairs_low(s, t), unpack_pairs_high(s, t));
}

DYNATTN_INLINE Vec sum_quarters(const Vec t[4]) {
  const Vec u = add(_mm512_shuffle_f32x4(t[0], t[1], 0x88), _mm512_shuffle_f32x4(t[0], t[1], 0xDD));
  const Vec v = add(_mm512_shuffle_f32x4(t[2], t[3], 0x88), _mm512_shuffle_f32x4(t[2], t[3], 0xDD));
  return add(_mm512_shuffle_f32x4(u, v, 0x88), _mm512_shuffle_f32x4(u, v, 0xDD));
}

#elif defined(DYNATTN_PORTABLE)

#define DYNATTN_PAIRS

struct Pairs {
  uint16_t number[2 * kWidth];
};

DYNATTN_INLINE Pairs load_pairs(const uint16_t* p) {
  Pairs a;
  memcpy(&a, p, sizeof a);
  return a;
}

DYNATTN_INLINE Pairs broadcast_pair(const uint16_t* p) { return {p[0], p[1], p[0], p[1], p[0], p[1], p[0], p[1]}; }

DYNATTN_INLINE Vec add_products(Vec sum, Pairs a, Pairs b) {
  for (int lane = 0; lane < kWidth; lane++) {
    const float even = from_bfloat16(a.number[2 * lane]) * from_bfloat16(b.number[2 * lane]);
    const float odd = from_bfloat16(a.number[2 * lane + 1]) * from_bfloat16(b.number[2 * lane + 1]);
    sum[lane] += even + odd;
  }
  return sum;
}

DYNATTN_INLINE void interleave_rows(Pairs a, Pairs b, Pairs& low, Pairs& high) {
  for (int i = 0; i < kWidth; i++) {
    low.number[2 * i] = a.number[i], low.number[2 * i + 1] = b.number[i];
    high.number[2 * i] = a.number[kWidth + i], high.number[2 * i + 1] = b.number[kWidth + i];
  }
}

DYNATTN_INLINE void store_rounded(uint16_t* to, Vec low, Vec high) {
  for (int i = 0; i < kWidth; i++) to[i] = to_bfloat16(low[i]), to[kWidth + i] = to_bfloat16(high[i]);
}

DYNATTN_INLINE Vec sum_four(const Vec r[4]) { return sum_each(r); }
DYNATTN_INLINE Vec sum_quarters(const Vec t[1]) { return t[0]; }

#endif

}  // namespace dynattn::DYNATTN_NAMESPACE
