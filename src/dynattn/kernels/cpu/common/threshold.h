// The threshold through the scores of a row that chooses by them. The gradient makes the same choice from the same
// threshold.
#pragma once

#include "common/query_block.h"
#include "common/reached_keys.h"

namespace dynattn::DYNATTN_NAMESPACE {

// A row keeps the scores above `score`, and of those equal to it the keys up to `last_tie`.
struct Threshold {
  float score;
  int32_t last_tie;
};

constexpr int32_t kAllTies = INT32_MAX;
constexpr float kBelowLargest = FLT_MAX / 2;
constexpr Threshold kKeepAllowed = {-FLT_MAX, kAllTies};
constexpr Threshold kKeepNothing = {INFINITY, -1};

// A row that chooses by weight, of which one score is NaN or infinite, keeps that key alone.
DYNATTN_INLINE Threshold keep_alone(int32_t key) { return {INFINITY, key}; }
DYNATTN_INLINE bool keeps_alone(const Threshold& threshold) {
  return threshold.score == INFINITY && threshold.last_tie >= 0;
}

// Where scores that are NaN or infinite go on as the largest float: leaves that to the one key that is kept, and gives
// the threshold through such scores. `first` is the key of the first of them.
DYNATTN_INLINE Threshold single_out(const Threshold& threshold, float* scores, int64_t first, int64_t count) {
  if (!keeps_alone(threshold)) return threshold;
  for (int64_t i = 0; i < count; i++) {
    if (scores[i] == FLT_MAX && first + i != threshold.last_tie) scores[i] = kBelowLargest;
  }
  return {FLT_MAX, threshold.last_tie};
}

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

// What a row keeps of a tile: what its threshold lets pass and the keys that are joined to it, without those that are
// out of reach.
struct RowChoice {
  Threshold threshold;
  bool joins, cuts;
  ReachedKeys joined, reached;
};

// A row that keeps nothing, as padding does, has nothing joined to it.
DYNATTN_INLINE RowChoice choice_of_row(const Plan& plan, const Threshold& threshold, int64_t query, int64_t first_key) {
  const Reach joined = joined_reach(*plan.args), reach = cutting_reach(*plan.args);
  const Area area = area_of(plan, query, query, first_key, plan.tile);
  const bool some = threshold.last_tie >= 0;
  return {threshold, some && plan.window && meets(joined, area), is_cut(plan, area),
          reached_keys(plan, joined, query, first_key), reached_keys(plan, reach, query, first_key)};
}

// `keys` are the lanes' keys, counted from the tile's first.
DYNATTN_INLINE uint32_t kept_lanes(const RowChoice& choice, Vec x, int64_t first, Vec keys) {
  uint32_t kept = kept_lanes(choice.threshold, x, first);
  if (choice.joins) kept |= bits(both(holds(choice.joined, keys), greater(x, broadcast(-INFINITY))));
  if (choice.cuts) kept &= bits(holds(choice.reached, keys));
  return kept;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
