// The threshold through the scores of a row that chooses by them. The gradient makes the same choice from the same
// threshold.
#pragma once

#include "common/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// A row keeps the scores above `score`, and of those equal to it the keys up to `last_tie`.
struct Threshold {
  float score;
  int32_t last_tie;
};

constexpr int32_t kAllTies = INT32_MAX;
constexpr Threshold kKeepAllowed = {-FLT_MAX, kAllTies};
constexpr Threshold kKeepNothing = {INFINITY, -1};

DYNATTN_INLINE uint32_t first_lanes(int64_t count) {
  return count >= kWidth ? (uint32_t{1} << kWidth) - 1 : (uint32_t{1} << count) - 1;
}

// Lanes of x, the first of which is key `first`, that are kept. No lane is NaN.
DYNATTN_INLINE uint32_t kept_lanes(const Threshold& threshold, Vec x, int64_t first) {
  const Vec score = broadcast(threshold.score);
  const uint32_t reach = first_lanes(kWidth) & ~bits(greater(score, x));
  if (__builtin_expect(first + kWidth - 1 <= threshold.last_tie, 1)) return reach;
  return bits(greater(x, score)) | (reach & first_lanes(larger<int64_t>(threshold.last_tie + 1 - first, 0)));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
