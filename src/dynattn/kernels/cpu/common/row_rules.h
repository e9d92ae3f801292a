// What the rules of rows that choose by their own scores come to, for kernels that look for a row's line one row at a time
// and for those that look for many at once.
#pragma once

#include <float.h>

#include "common/dtypes.h"

namespace dynattn::DYNATTN_NAMESPACE {

// log2 of the smallest weight that a float holds; scores below it have no weight at all.
constexpr float kLeastWeight = -149.0f;
// A sum that lacks less than this part of the share counts as reaching it. Sums are off by about a third of this.
// Without it, a row of equal weights would keep one key too many at some lengths.
constexpr float kLacking = 0x1p-20f;

// How many of its allowed keys a row keeps by rank.
DYNATTN_INLINE int64_t wanted_by_rank(const RowForwardArgs& rule, int64_t allowed) {
  const int64_t share = larger(rule.floor, ceil_div(allowed * rule.numerator, rule.denominator));
  return smaller(smaller(rule.most, share), allowed);
}

// By how much a score has to lie under the largest for its weight to be `weight`. `sum`: of all weights, relative to the
// largest.
DYNATTN_INLINE float depth_of_weight(float weight, float sum, float exponent) {
  return -(larger(log2f(weight), kLeastWeight) + log2f(sum)) / exponent;
}

// The line above which scores lie less than `depth`, a finite number, under the largest. `largest - depth` is rounded to a
// score, past one or two of its neighbours where scores are so large that they lie far apart. Differences between such
// neighbours are exact.
static float line_at_depth(float largest, float depth) {
  float score = largest - depth;
  for (int i = 0; i < 2 && !(largest - score < depth); i++) score = nextafterf(score, INFINITY);
  const float lower = nextafterf(score, -INFINITY);
  return larger(largest - lower < depth ? lower : score, -FLT_MAX);
}

// Floats in order as whole numbers: neighbours differ by one.
DYNATTN_INLINE int64_t ordinal(float x) {
  const uint32_t bits = to_bits(x);
  return bits >> 31 ? -static_cast<int64_t>(bits & 0x7fffffffu) : static_cast<int64_t>(bits);
}

DYNATTN_INLINE float of_ordinal(int64_t number) {
  return number < 0 ? from_bits(static_cast<uint32_t>(-number) | 0x80000000u)
                    : from_bits(static_cast<uint32_t>(number));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
