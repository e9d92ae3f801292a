// AVX2 and FMA: 8 lanes, 16 registers.
#pragma once

#include <immintrin.h>

namespace dynattn::DYNATTN_NAMESPACE {

using Vec = __m256;
using Mask = __m256;
constexpr int kWidth = 8;
constexpr int kRegisters = 16;

DYNATTN_INLINE Vec zero() { return _mm256_setzero_ps(); }
DYNATTN_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
DYNATTN_INLINE Vec load(const float* p) { return _mm256_load_ps(p); }
DYNATTN_INLINE Vec load_any(const float* p) { return _mm256_loadu_ps(p); }
// kWidth numbers of fewer bits as floats.
DYNATTN_INLINE Vec load_bfloat16(const uint16_t* p) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

DYNATTN_INLINE Vec load_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

DYNATTN_INLINE void store(float* p, Vec a) { _mm256_store_ps(p, a); }
DYNATTN_INLINE void store_any(float* p, Vec a) { _mm256_storeu_ps(p, a); }

// Four floats in every 128-bit part, and one of them in every lane: a broadcast that costs a shuffle, not a load.
DYNATTN_INLINE Vec load_four(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }

template <int kLane>
DYNATTN_INLINE Vec broadcast_lane(Vec four) {
  return _mm256_permute_ps(four, kLane * 0x55);
}

DYNATTN_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
DYNATTN_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
DYNATTN_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
DYNATTN_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
DYNATTN_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
DYNATTN_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
DYNATTN_INLINE Vec fmadd(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
DYNATTN_INLINE Vec fmsub(Vec a, Vec b, Vec c) { return _mm256_fmsub_ps(a, b, c); }

DYNATTN_INLINE Mask greater(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
DYNATTN_INLINE Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
DYNATTN_INLINE Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
DYNATTN_INLINE Vec select(Mask m, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, m); }
DYNATTN_INLINE uint32_t bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }

DYNATTN_INLINE Mask mask_of(uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane));
}

// The same for the bits from `kFirst` on, up to bit 31. The word is broadcast from memory, once for all of its parts.
template <int kFirst>
DYNATTN_INLINE Mask mask_at(uint32_t word) {
  const __m256i lane = _mm256_slli_epi32(_mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), kFirst);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(word)), lane);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane));
}

// The lanes of `a` whose bit is set, side by side from lane 0; the rest is of no meaning. Lane numbers of three bits
// are gathered from a word that holds them all, and spread to a lane each.
DYNATTN_INLINE Vec compress(uint32_t bits, Vec a) {
  const uint64_t bytes = _pdep_u64(bits, 0x0101010101010101u) * 0xff;
  const uint64_t lanes = _pext_u64(0x0706050403020100u, bytes);
  return _mm256_permutevar8x32_ps(a, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(lanes))));
}

// Lanes as integers of 32 bits.
DYNATTN_INLINE Vec add_integers(Vec a, Vec b) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}

DYNATTN_INLINE Vec broadcast_integer(int32_t x) { return _mm256_castsi256_ps(_mm256_set1_epi32(x)); }

DYNATTN_INLINE Vec exclusive_or(Vec a, Vec b) { return _mm256_xor_ps(a, b); }

DYNATTN_INLINE Mask reaches(Vec a, Vec limit) {  // a >= limit, without sign
  const __m256i x = _mm256_castps_si256(a);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(x, _mm256_castps_si256(limit)), x));
}

// Lanes as halves of 64 bits: products of the low halves, the high halves moved to the low ones, and the low halves of
// two vectors, of which `even` gives the even lanes of 32 bits.
DYNATTN_INLINE Vec multiply_halves(Vec a, Vec b) {
  return _mm256_castsi256_ps(_mm256_mul_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}

DYNATTN_INLINE Vec high_halves(Vec a) { return _mm256_castsi256_ps(_mm256_srli_epi64(_mm256_castps_si256(a), 32)); }

DYNATTN_INLINE Vec join_halves(Vec even, Vec odd) {
  return _mm256_blend_ps(even, _mm256_castsi256_ps(_mm256_slli_epi64(_mm256_castps_si256(odd), 32)), 0xAA);
}

DYNATTN_INLINE Vec low_bits_to_exponent(Vec a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}

DYNATTN_INLINE float reduce_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

DYNATTN_INLINE float reduce_add(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

// Rows become columns: neighbours are interleaved, then pairs, then 128-bit halves.
DYNATTN_INLINE void transpose(Vec r[kWidth]) {
  Vec t[8], u[8];
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

// Lane i: the sum of r[i]. Halves of neighbours change places and are added, until each vector has shrunk to a lane.
DYNATTN_INLINE Vec sum_each(const Vec r[kWidth]) {
  Vec s[4], t[2];
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) {
    s[i] = add(_mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]), _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]));
  }
#pragma GCC unroll 16
  for (int i = 0; i < 2; i++) {
    t[i] = add(_mm256_shuffle_ps(s[2 * i], s[2 * i + 1], 0x44), _mm256_shuffle_ps(s[2 * i], s[2 * i + 1], 0xEE));
  }
  return add(_mm256_permute2f128_ps(t[0], t[1], 0x20), _mm256_permute2f128_ps(t[0], t[1], 0x31));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
