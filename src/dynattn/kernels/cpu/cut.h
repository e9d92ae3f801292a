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

// Lanes of x, the first of which is key `first`, that are kept. No lane is NaN.
DYNATTN_INLINE uint32_t kept_lanes(const Cut& cut, Vec x, int64_t first) {
  const Vec least = broadcast(cut.least);
  const uint32_t all = (uint32_t{1} << kWidth) - 1, reach = all & ~bits(greater(least, x));
  if (__builtin_expect(first + kWidth - 1 <= cut.last, 1)) return reach;
  const int64_t ties = larger<int64_t>(cut.last + 1 - first, 0);
  return bits(greater(x, least)) | (reach & ((uint32_t{1} << ties) - 1));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
