// Where a row that chooses by its own scores draws the line. The gradient makes the same choice from the same line.
#pragma once

#include "plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Kept are the scores above `least`, and of those equal to it the keys up to `last`.
struct Cut {
  float least;
  int32_t last;
};

constexpr int32_t kAllTies = INT32_MAX;
constexpr Cut kAllAllowed = {-FLT_MAX, kAllTies};
constexpr Cut kNothing = {INFINITY, -1};

DYNATTN_INLINE uint32_t first_lanes(int64_t count) {
  return count >= kWidth ? (uint32_t{1} << kWidth) - 1 : (uint32_t{1} << count) - 1;
}

// Lanes of x, the first of which is key `first`, that are kept. No lane is NaN.
DYNATTN_INLINE uint32_t kept_lanes(const Cut& cut, Vec x, int64_t first) {
  const Vec least = broadcast(cut.least);
  const uint32_t reach = first_lanes(kWidth) & ~bits(greater(least, x));
  if (__builtin_expect(first + kWidth - 1 <= cut.last, 1)) return reach;
  return bits(greater(x, least)) | (reach & first_lanes(larger<int64_t>(cut.last + 1 - first, 0)));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
