// Keys that positions alone decide about: those near a query, and the first few. A call may have two such rules: `window`
// and `sinks` join their pairs to what is chosen; `within` and `within_sinks` drop what was chosen elsewhere.
#pragma once

#include "dynattn_cpu.h"
#include "simd/simd.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Keys less than `window` positions from a query, and those before `sinks`.
struct Reach {
  int64_t window, sinks;
};

DYNATTN_INLINE Reach joined_reach(const NMForwardArgs& args) { return {args.window, args.sinks}; }
DYNATTN_INLINE Reach cutting_reach(const NMForwardArgs& args) { return {args.within, args.within_sinks}; }

// `position` is a query's place on the key axis.
DYNATTN_INLINE bool reaches(const Reach& reach, int64_t position, int64_t key) {
  return key < reach.sinks || (position - reach.window < key && key < position + reach.window);
}

// Neighbouring queries by their places on the key axis, and neighbouring keys.
struct Area {
  int64_t first, last;
  int64_t first_key, keys;
};

// True where some of these pairs are reached.
DYNATTN_INLINE bool meets(const Reach& reach, const Area& at) {
  const bool near = reach.window > 0 && at.first - reach.window < at.first_key + at.keys - 1 &&
                    at.last + reach.window > at.first_key;
  return at.first_key < reach.sinks || near;
}

// True where all of these pairs are reached.
DYNATTN_INLINE bool fills(const Reach& reach, const Area& at) {
  const bool near = at.first_key + at.keys - 1 - at.first < reach.window && at.last - at.first_key < reach.window;
  return at.first_key + at.keys <= reach.sinks || near;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
