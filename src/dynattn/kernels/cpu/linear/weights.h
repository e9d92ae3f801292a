// Weights as they are stored, read as float32.
#pragma once

#include "common/dtypes.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct Float32Weights {
  using Element = float;
  DYNATTN_INLINE Vec load(const Element* p) { return load_any(p); }
};

struct BFloat16Weights {
  using Element = uint16_t;
  DYNATTN_INLINE Vec load(const Element* p) { return load_bfloat16(p); }
};

struct Int8Weights {
  using Element = int8_t;
  DYNATTN_INLINE Vec load(const Element* p) { return load_int8(p); }
};

// The first `count` lanes, fewer than there are; nothing behind them is read, and the other lanes are 0.
template <class Weights>
DYNATTN_INLINE Vec load_some(const typename Weights::Element* p, int64_t count) {
  typename Weights::Element some[kWidth] = {};
  memcpy(some, p, static_cast<size_t>(count) * sizeof some[0]);
  return Weights::load(some);
}

// Calls body(Weights()) for the dtype of a call's weights.
template <class Body>
static int32_t with_weights(int32_t dtype, Body body) {
  if (dtype == DYNATTN_FLOAT32) return body(Float32Weights());
  return dtype == DYNATTN_BFLOAT16 ? body(BFloat16Weights()) : body(Int8Weights());
}

}  // namespace dynattn::DYNATTN_NAMESPACE
