// NEON of 64-bit ARM: 4 lanes, 32 registers.
#pragma once

#include <arm_neon.h>

namespace dynattn::DYNATTN_NAMESPACE {

using Vec = float32x4_t;
using Mask = uint32x4_t;
constexpr int kWidth = 4;
constexpr int kRegisters = 32;

DYNATTN_INLINE Vec zero() { return vdupq_n_f32(0.0f); }
DYNATTN_INLINE Vec broadcast(float x) { return vdupq_n_f32(x); }
DYNATTN_INLINE Vec load(const float* p) { return vld1q_f32(p); }
DYNATTN_INLINE Vec load_any(const float* p) { return vld1q_f32(p); }
// kWidth numbers of fewer bits as floats.
DYNATTN_INLINE Vec load_bfloat16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

DYNATTN_INLINE Vec load_int8(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}

DYNATTN_INLINE void store(float* p, Vec a) { vst1q_f32(p, a); }
DYNATTN_INLINE void store_any(float* p, Vec a) { vst1q_f32(p, a); }

// Four floats, and one of them in every lane: multiply-adds take a lane for free.
DYNATTN_INLINE Vec load_four(const float* p) { return vld1q_f32(p); }

template <int kLane>
DYNATTN_INLINE Vec broadcast_lane(Vec four) {
  return vdupq_laneq_f32(four, kLane);
}

// Of a number and NaN, `max` and `min` take the number: exp2_scaled clamps -inf - -inf so, as it does on x86.
DYNATTN_INLINE Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
DYNATTN_INLINE Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
DYNATTN_INLINE Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
DYNATTN_INLINE Vec max(Vec a, Vec b) { return vmaxnmq_f32(a, b); }
DYNATTN_INLINE Vec min(Vec a, Vec b) { return vminnmq_f32(a, b); }
DYNATTN_INLINE Vec abs(Vec a) { return vabsq_f32(a); }
DYNATTN_INLINE Vec fmadd(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
DYNATTN_INLINE Vec fmsub(Vec a, Vec b, Vec c) { return vfmaq_f32(vnegq_f32(c), a, b); }

DYNATTN_INLINE Mask greater(Vec a, Vec b) { return vcgtq_f32(a, b); }
DYNATTN_INLINE Mask either(Mask a, Mask b) { return vorrq_u32(a, b); }
DYNATTN_INLINE Mask both(Mask a, Mask b) { return vandq_u32(a, b); }
DYNATTN_INLINE Vec select(Mask m, Vec yes, Vec no) { return vbslq_f32(m, yes, no); }

DYNATTN_INLINE Mask lane_bits() {
  alignas(16) static constexpr uint32_t lanes[4] = {1, 2, 4, 8};
  return vld1q_u32(lanes);
}

DYNATTN_INLINE uint32_t bits(Mask m) { return vaddvq_u32(vandq_u32(m, lane_bits())); }
DYNATTN_INLINE Mask mask_of(uint32_t bits) { return vtstq_u32(vdupq_n_u32(bits), lane_bits()); }

// The same for the bits from `kFirst` on.
template <int kFirst>
DYNATTN_INLINE Mask mask_at(uint32_t word) {
  return vtstq_u32(vdupq_n_u32(word), vshlq_n_u32(lane_bits(), kFirst));
}

// The lanes of `a` whose bit is set, side by side from lane 0; the rest is of no meaning. A table has the bytes of the
// lanes for each of 16 words of bits; a lane is four bytes, and 0x03020100 the first.
DYNATTN_INLINE Vec compress(uint32_t bits, Vec a) {
  constexpr uint32_t k0 = 0x03020100u, k1 = 0x07060504u, k2 = 0x0b0a0908u, k3 = 0x0f0e0d0cu;
  alignas(16) static constexpr uint32_t lanes[16][4] = {
      {k0, k0, k0, k0}, {k0, k0, k0, k0}, {k1, k0, k0, k0}, {k0, k1, k0, k0}, {k2, k0, k0, k0}, {k0, k2, k0, k0},
      {k1, k2, k0, k0}, {k0, k1, k2, k0}, {k3, k0, k0, k0}, {k0, k3, k0, k0}, {k1, k3, k0, k0}, {k0, k1, k3, k0},
      {k2, k3, k0, k0}, {k0, k2, k3, k0}, {k1, k2, k3, k0}, {k0, k1, k2, k3}};
  const uint8x16_t bytes = vreinterpretq_u8_u32(vld1q_u32(lanes[bits]));
  return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(a), bytes));
}

// Lanes as integers of 32 bits.
DYNATTN_INLINE uint32x4_t integers(Vec a) { return vreinterpretq_u32_f32(a); }
DYNATTN_INLINE Vec add_integers(Vec a, Vec b) { return vreinterpretq_f32_u32(vaddq_u32(integers(a), integers(b))); }
DYNATTN_INLINE Vec broadcast_integer(int32_t x) { return vreinterpretq_f32_s32(vdupq_n_s32(x)); }
DYNATTN_INLINE Vec exclusive_or(Vec a, Vec b) { return vreinterpretq_f32_u32(veorq_u32(integers(a), integers(b))); }
DYNATTN_INLINE Mask reaches(Vec a, Vec limit) { return vcgeq_u32(integers(a), integers(limit)); }  // without sign

// Lanes as halves of 64 bits: products of the low halves, the high halves moved to the low ones, and the low halves of
// two vectors, of which `even` gives the even lanes of 32 bits.
DYNATTN_INLINE uint64x2_t halves(Vec a) { return vreinterpretq_u64_f32(a); }

DYNATTN_INLINE Vec multiply_halves(Vec a, Vec b) {
  return vreinterpretq_f32_u64(vmull_u32(vmovn_u64(halves(a)), vmovn_u64(halves(b))));
}

DYNATTN_INLINE Vec high_halves(Vec a) { return vreinterpretq_f32_u64(vshrq_n_u64(halves(a), 32)); }
DYNATTN_INLINE Vec join_halves(Vec even, Vec odd) { return vtrn1q_f32(even, odd); }
DYNATTN_INLINE Vec low_bits_to_exponent(Vec a) { return vreinterpretq_f32_u32(vshlq_n_u32(integers(a), 23)); }

DYNATTN_INLINE float reduce_max(Vec a) { return vmaxnmvq_f32(a); }
DYNATTN_INLINE float reduce_add(Vec a) { return vaddvq_f32(a); }

// Rows become columns: neighbours are interleaved, then pairs.
DYNATTN_INLINE void transpose(Vec r[kWidth]) {
  const uint64x2_t even01 = halves(vtrn1q_f32(r[0], r[1])), odd01 = halves(vtrn2q_f32(r[0], r[1]));
  const uint64x2_t even23 = halves(vtrn1q_f32(r[2], r[3])), odd23 = halves(vtrn2q_f32(r[2], r[3]));
  r[0] = vreinterpretq_f32_u64(vtrn1q_u64(even01, even23));
  r[1] = vreinterpretq_f32_u64(vtrn1q_u64(odd01, odd23));
  r[2] = vreinterpretq_f32_u64(vtrn2q_u64(even01, even23));
  r[3] = vreinterpretq_f32_u64(vtrn2q_u64(odd01, odd23));
}

// Lane i: the sum of r[i].
DYNATTN_INLINE Vec sum_each(const Vec r[kWidth]) { return vpaddq_f32(vpaddq_f32(r[0], r[1]), vpaddq_f32(r[2], r[3])); }

}  // namespace dynattn::DYNATTN_NAMESPACE
