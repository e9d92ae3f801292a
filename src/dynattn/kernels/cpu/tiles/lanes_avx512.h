// Sixteen lanes as one register of AVX-512 (F, BW, DQ).
#pragma once

#include <immintrin.h>

namespace dynattn::DYNATTN_NAMESPACE {

using Lanes = __m512;
using Words = __m512i;

DYNATTN_INLINE Lanes load_lanes(const float* p) { return _mm512_loadu_ps(p); }
DYNATTN_INLINE Words load_words(const void* p) { return _mm512_loadu_si512(p); }
DYNATTN_INLINE void store(uint32_t* p, Words a) { _mm512_storeu_si512(p, a); }
// The first `count` of 32 numbers of 16 bits, zeros behind them.
DYNATTN_INLINE Words load_numbers(const uint16_t* p, int64_t count) {
  return _mm512_maskz_loadu_epi16(count < 2 * kLanes ? (1u << count) - 1 : ~0u, p);
}

// The first `count` lanes.
DYNATTN_INLINE void store_first(float* p, Lanes a, int64_t count) {
  _mm512_mask_storeu_ps(p, static_cast<LaneMask>((1u << count) - 1), a);
}

// The low halves of the first `count` lanes, side by side.
DYNATTN_INLINE void store_halves(uint16_t* p, Words a, int64_t count = kLanes) {
  _mm512_mask_cvtepi32_storeu_epi16(p, static_cast<LaneMask>((1u << count) - 1), a);
}
DYNATTN_INLINE Lanes broadcast_lanes(float x) { return _mm512_set1_ps(x); }
DYNATTN_INLINE Words broadcast_words(uint32_t x) { return _mm512_set1_epi32(static_cast<int32_t>(x)); }

DYNATTN_INLINE LaneMask is_nan(Lanes a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }

DYNATTN_INLINE Words select(LaneMask m, Words yes, Words no) { return _mm512_mask_blend_epi32(m, no, yes); }
DYNATTN_INLINE Words only(LaneMask m, Words a) { return _mm512_maskz_mov_epi32(m, a); }
DYNATTN_INLINE Words both(Words a, Words b) { return _mm512_and_si512(a, b); }
DYNATTN_INLINE Words either(Words a, Words b) { return _mm512_or_si512(a, b); }
DYNATTN_INLINE Words flip(Words a, Words b) { return _mm512_xor_si512(a, b); }
DYNATTN_INLINE Words add(Words a, Words b) { return _mm512_add_epi32(a, b); }

template <int kBits>
DYNATTN_INLINE Words shift_left(Words a) {
  return _mm512_slli_epi32(a, kBits);
}

template <int kBits>
DYNATTN_INLINE Words shift_right(Words a) {
  return _mm512_srli_epi32(a, kBits);
}

// Further bits where the mask has one.
DYNATTN_INLINE Words with_bits(LaneMask m, Words a, uint32_t bits) {
  return _mm512_mask_or_epi32(a, m, a, broadcast_words(bits));
}

// The low half goes to the high one where the bit is set.
DYNATTN_INLINE Words raise_halves(LaneMask m, Words a) { return _mm512_mask_slli_epi32(a, m, a, 16); }

DYNATTN_INLINE LaneMask nonzero(Words a) { return _mm512_test_epi32_mask(a, a); }

// Halves of words as unsigned numbers of 16 bits.
DYNATTN_INLINE Words max_halves(Words a, Words b) { return _mm512_max_epu16(a, b); }

DYNATTN_INLINE Words words_of(Lanes a) { return _mm512_castps_si512(a); }
DYNATTN_INLINE Lanes floats_of(Words a) { return _mm512_castsi512_ps(a); }

// a - floor(a), for a >= 0; infinity gives 0.
DYNATTN_INLINE Lanes above_floor(Lanes a) { return _mm512_reduce_ps(a, _MM_FROUND_TO_NEG_INF); }

// Round to nearest, ties to even; 2^31 for what is too large.
DYNATTN_INLINE Words round_to_words(Lanes a) { return _mm512_cvtps_epi32(a); }
DYNATTN_INLINE Lanes round_lanes(Lanes a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }

}  // namespace dynattn::DYNATTN_NAMESPACE
