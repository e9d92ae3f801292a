// Converts between float32 and the dtypes of tensors. Half-precision tensors are computed in float32.
#pragma once

#include "dynattn_cpu.h"
#include "simd/simd.h"

namespace dynattn::DYNATTN_NAMESPACE {

DYNATTN_INLINE float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

DYNATTN_INLINE uint32_t to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

DYNATTN_INLINE int64_t element_size(int32_t dtype) {
  return dtype == DYNATTN_FLOAT32 ? 4 : dtype == DYNATTN_BOOL ? 1 : 2;
}

DYNATTN_INLINE const char* element(const void* base, int64_t index, int32_t dtype) {
  return static_cast<const char*>(base) + index * element_size(dtype);
}

DYNATTN_INLINE float from_bfloat16(uint16_t x) { return from_bits(uint32_t{x} << 16); }

// The exponent is moved by a product with 2^112, which is right for subnormal numbers as well. For infinity and NaN the
// exponent is filled up with ones.
DYNATTN_INLINE float from_float16(uint16_t x) {
  const uint32_t magnitude = (x & 0x7fffu) << 13;
  const uint32_t scaled = to_bits(from_bits(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return from_bits(scaled | special | (x & 0x8000u) << 16);
}

// Round to nearest, ties to even.
DYNATTN_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>(x != x ? bits >> 16 | 0x40u : rounded);
}

DYNATTN_INLINE uint16_t to_float16(float x) {
  const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (x != x) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  // Below 2^-14 the addition of 1/2 aligns the bits as a subnormal has them, and rounds.
  if (magnitude < 0x38800000u) return static_cast<uint16_t>(sign | (to_bits(from_bits(magnitude) + 0.5f) & 0xffffu));
  return static_cast<uint16_t>(sign | (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13);
}

// Touches the `count` entries of a mask that follow as many at `row`: rows lie far apart, so that the processor does not
// foresee that a tile of keys is followed by the next.
DYNATTN_INLINE void prefetch_mask(const NMForwardArgs& args, const char* row, int64_t count) {
  if (args.mask_strides[3] != 1) return;
  const int64_t bytes = count * element_size(args.mask_dtype);
  for (int64_t at = bytes; at < 2 * bytes; at += 64) __builtin_prefetch(row + at);
}

// `count` elements, contiguous, as float32.
static void to_floats(float* to, const char* from, int32_t dtype, int64_t count) {
  const uint16_t* half = reinterpret_cast<const uint16_t*>(from);
  if (dtype == DYNATTN_FLOAT32) {
    memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  } else if (dtype == DYNATTN_BFLOAT16) {
    for (int64_t i = 0; i < count; i++) to[i] = from_bfloat16(half[i]);
  } else {
    for (int64_t i = 0; i < count; i++) to[i] = from_float16(half[i]);
  }
}

// Converts the first `count` mask entries of a row to additive floats, in key order.
static inline void mask_to_floats(const NMForwardArgs& args, const char* row, int64_t count, float* to) {
  const int64_t stride = args.mask_strides[3];
  if (args.mask_dtype == DYNATTN_BOOL) {
    const uint8_t* allowed = reinterpret_cast<const uint8_t*>(row);
    if (stride == 1) {
      for (int64_t i = 0; i < count; i++) to[i] = allowed[i] ? 0.0f : -INFINITY;
    } else {
      for (int64_t i = 0; i < count; i++) to[i] = allowed[i * stride] ? 0.0f : -INFINITY;
    }
  } else if (stride == 1) {
    to_floats(to, row, args.mask_dtype, count);
  } else {
    for (int64_t i = 0; i < count; i++)
      to_floats(to + i, element(row, i * stride, args.mask_dtype), args.mask_dtype, 1);
  }
}

static inline void from_floats(char* to, const float* from, int32_t dtype, int64_t count) {
  uint16_t* half = reinterpret_cast<uint16_t*>(to);
  if (dtype == DYNATTN_FLOAT32) {
    memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  } else if (dtype == DYNATTN_BFLOAT16) {
    for (int64_t i = 0; i < count; i++) half[i] = to_bfloat16(from[i]);
  } else {
    for (int64_t i = 0; i < count; i++) half[i] = to_float16(from[i]);
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
