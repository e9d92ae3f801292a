// AVX-512 (F, BW, DQ, VL): 16 lanes, 32 registers, truth values in mask registers.
#pragma once

#include <immintrin.h>

namespace dynattn::DYNATTN_NAMESPACE {

using Vec = __m512;
using Mask = __mmask16;
constexpr int kWidth = 16;
constexpr int kRegisters = 32;

DYNATTN_INLINE Vec zero() { return _mm512_setzero_ps(); }
DYNATTN_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
DYNATTN_INLINE Vec load(const float* p) { return _mm512_load_ps(p); }
DYNATTN_INLINE Vec load_any(const float* p) { return _mm512_loadu_ps(p); }
// kWidth numbers of fewer bits as floats.
DYNATTN_INLINE Vec load_bfloat16(const uint16_t* p) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

DYNATTN_INLINE Vec load_int8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

DYNATTN_INLINE void store(float* p, Vec a) { _mm512_store_ps(p, a); }
DYNATTN_INLINE void store_any(float* p, Vec a) { _mm512_storeu_ps(p, a); }

// Four floats in every 128-bit part, and one of them in every lane: a broadcast that costs a shuffle, not a load.
DYNATTN_INLINE Vec load_four(const float* p) { return _mm512_broadcast_f32x4(_mm_load_ps(p)); }

template <int kLane>
DYNATTN_INLINE Vec broadcast_lane(Vec four) {
  return _mm512_permute_ps(four, kLane * 0x55);
}

DYNATTN_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
DYNATTN_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
DYNATTN_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
DYNATTN_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
DYNATTN_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
DYNATTN_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
DYNATTN_INLINE Vec fmadd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
DYNATTN_INLINE Vec fmsub(Vec a, Vec b, Vec c) { return _mm512_fmsub_ps(a, b, c); }

DYNATTN_INLINE Mask greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
DYNATTN_INLINE Mask either(Mask a, Mask b) { return static_cast<Mask>(a | b); }
DYNATTN_INLINE Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
DYNATTN_INLINE Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_ps(m, no, yes); }
DYNATTN_INLINE uint32_t bits(Mask m) { return m; }

DYNATTN_INLINE Mask mask_of(uint32_t bits) { return static_cast<Mask>(bits); }

// The same for the bits from `kFirst` on.
template <int kFirst>
DYNATTN_INLINE Mask mask_at(uint32_t word) {
  return static_cast<Mask>(word >> kFirst);
}

// The lanes of `a` whose bit is set, side by side from lane 0; the rest is of no meaning.
DYNATTN_INLINE Vec compress(uint32_t bits, Vec a) { return _mm512_maskz_compress_ps(static_cast<Mask>(bits), a); }

// Lanes as integers of 32 bits.
DYNATTN_INLINE Vec add_integers(Vec a, Vec b) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

DYNATTN_INLINE Vec broadcast_integer(int32_t x) { return _mm512_castsi512_ps(_mm512_set1_epi32(x)); }

DYNATTN_INLINE Vec exclusive_or(Vec a, Vec b) { return _mm512_xor_ps(a, b); }

DYNATTN_INLINE Mask reaches(Vec a, Vec limit) {  // a >= limit, without sign
  return _mm512_cmpge_epu32_mask(_mm512_castps_si512(a), _mm512_castps_si512(limit));
}

// Lanes as halves of 64 bits: products of the low halves, the high halves moved to the low ones, and the low halves of
// two vectors, of which `even` gives the even lanes of 32 bits.
DYNATTN_INLINE Vec multiply_halves(Vec a, Vec b) {
  return _mm512_castsi512_ps(_mm512_mul_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

DYNATTN_INLINE Vec high_halves(Vec a) { return _mm512_castsi512_ps(_mm512_srli_epi64(_mm512_castps_si512(a), 32)); }

DYNATTN_INLINE Vec join_halves(Vec even, Vec odd) {
  return _mm512_mask_blend_ps(0xAAAA, even, _mm512_castsi512_ps(_mm512_slli_epi64(_mm512_castps_si512(odd), 32)));
}

DYNATTN_INLINE Vec low_bits_to_exponent(Vec a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}

DYNATTN_INLINE float reduce_max(Vec a) { return _mm512_reduce_max_ps(a); }
DYNATTN_INLINE float reduce_add(Vec a) { return _mm512_reduce_add_ps(a); }

DYNATTN_INLINE Vec unpack_pairs_low(Vec a, Vec b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

DYNATTN_INLINE Vec unpack_pairs_high(Vec a, Vec b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

// Rows become columns: neighbours are interleaved, then pairs; after that quarter q of u[4i + c] holds column
// 4q + c of rows 4i … 4i + 3, and two rounds of quarter shuffles gather each column.
DYNATTN_INLINE void transpose(Vec r[kWidth]) {
  Vec t[16], u[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    u[i] = unpack_pairs_low(t[i], t[i + 2]);
    u[i + 1] = unpack_pairs_high(t[i], t[i + 2]);
    u[i + 2] = unpack_pairs_low(t[i + 1], t[i + 3]);
    u[i + 3] = unpack_pairs_high(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 16
  for (int c = 0; c < 4; c++) {
    const Vec even_low = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88);
    const Vec odd_low = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xDD);
    const Vec even_high = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
    const Vec odd_high = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xDD);
    r[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
    r[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
  }
}

// Lane i: the sum of r[i]. Halves of neighbours change places and are added, until each vector has shrunk to a lane.
DYNATTN_INLINE Vec sum_each(const Vec r[kWidth]) {
  Vec s[8], t[4], u[2];
#pragma GCC unroll 16
  for (int i = 0; i < 8; i++) {
    s[i] = add(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]), _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) {
    t[i] = add(unpack_pairs_low(s[2 * i], s[2 * i + 1]), unpack_pairs_high(s[2 * i], s[2 * i + 1]));
  }
#pragma GCC unroll 16
  for (int i = 0; i < 2; i++) {
    u[i] = add(_mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0x88), _mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0xDD));
  }
  return add(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xDD));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
