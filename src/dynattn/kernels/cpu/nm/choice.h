// The choice of N of M in memory, on scores by position: for every pattern, windows, counts, and scores that may be
// NaN. nm/scores.h has the choice in registers, for 1:2 and 2:4.
#pragma once

#include "common/reached_keys.h"
#include "common/softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Entries kept whatever the choice.
DYNATTN_INLINE ReachedKeys always_kept(const Plan& plan, int64_t query, int64_t first_key) {
  return reached_keys(plan, plan.window ? joined_reach(*plan.args) : kNoReach, query, first_key);
}

// An entry's rank is the number of members of its group that beat it, and the first n are kept. A group's members stand
// kWidth apart.
DYNATTN_INLINE void rank_group(const float* group, int m, Vec* rank) {
  const Vec one = broadcast(1.0f);
  for (int i = 0; i < m; i++) rank[i] = zero();
  for (int j = 1; j < m; j++) {
    for (int i = 0; i < j; i++) {
      const Mask later = greater(load(group + j * kWidth), load(group + i * kWidth));
      rank[i] = select(later, add(rank[i], one), rank[i]);
      rank[j] = select(later, rank[j], add(rank[j], one));
    }
  }
}

// Scores that are not chosen, and those that are chosen but not reached, become -inf: a choice among what is left is
// then the choice itself. `bias`: NULL, or forbids what is below every float. NaN and infinity rank as the largest
// float, and stay as they are where they are kept.
template <int kM>
static void cut_row(const Plan& plan, float* scores, const float* bias, const ReachedKeys& always,
                    const ReachedKeys& reached) {
  const int m = kM ? kM : plan.m;
  const Vec forbidden = broadcast(-INFINITY), infinity = broadcast(INFINITY), largest = broadcast(FLT_MAX);
  const Vec wanted = broadcast(static_cast<float>(plan.n));
  alignas(64) float finite[(kM ? kM : kMaxM) * kWidth];
  for (int start = 0; start < plan.tile; start += m * kWidth) {
    Vec rank[kM ? kM : kMaxM];
    for (int i = 0; i < m; i++) {
      const int at = start + i * kWidth;
      Vec x = load(scores + at);
      if (bias != nullptr) x = select(greater(broadcast(-FLT_MAX), load(bias + at)), forbidden, x);
      store(finite + i * kWidth, select(greater(infinity, x), x, largest));
    }
    rank_group(finite, m, rank);
    for (int i = 0; i < m; i++) {
      const int at = start + i * kWidth;
      const Vec key = load(plan.key_number + at);
      const Mask kept = both(either(greater(wanted, rank[i]), holds(always, key)), holds(reached, key));
      const Mask allowed = greater(load(finite + i * kWidth), forbidden);
      store(scores + at, select(both(kept, allowed), load(scores + at), forbidden));
    }
  }
}

// Scores by position become weights, in place; those not kept become `dropped_weight`. kM: the group's size, 0 when
// known only at run time.
template <int kM>
static void choose_row(const Plan& plan, const RowStates& rows, int64_t row, float* scores, const ReachedKeys& always,
                       float dropped_weight) {
  const int m = kM ? kM : plan.m;
  follow_maximum(plan, rows, row, largest_lanes(scores, plan.tile));

  const Vec reference = broadcast(rows.reference[row]), exponent = broadcast(plan.exponent),
            floor = broadcast(plan.floor);
  const Vec wanted = broadcast(static_cast<float>(plan.n));
  Vec sum = load(rows.sum + row * kWidth), dropped = load(rows.dropped + row * kWidth);
  for (int start = 0; start < plan.tile; start += m * kWidth) {
    float* group = scores + start;
    Vec rank[kM ? kM : kMaxM];
    rank_group(group, m, rank);
    for (int i = 0; i < m; i++) {
      const Vec x = load(group + i * kWidth), key = load(plan.key_number + start + i * kWidth);
      const Mask allowed = greater(x, broadcast(-INFINITY));
      const Mask keep = both(either(greater(wanted, rank[i]), holds(always, key)), allowed);
      const Vec weight = exp2_scaled(sub(x, reference), exponent, floor);
      sum = add(sum, select(keep, weight, zero()));
      if (plan.counts) {
        dropped = add(dropped, select(keep, zero(), select(allowed, weight, zero())));
        rows.kept[row] += __builtin_popcount(bits(keep));
        rows.allowed[row] += __builtin_popcount(bits(allowed));
      }
      store(group + i * kWidth, select(keep, weight, broadcast(dropped_weight)));
    }
  }
  store(rows.sum + row * kWidth, sum);
  store(rows.dropped + row * kWidth, dropped);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
