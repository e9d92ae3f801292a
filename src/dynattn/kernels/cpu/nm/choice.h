// The choice of N of M in memory, on scores by position: for every pattern, windows, counts, and scores that may be
// NaN. nm/scores.h has the choice in registers, for 1:2 and 2:4.
#pragma once

#include "common/softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Entries kept whatever the choice: keys between `low` and `high`, both excluded, and keys below `sinks`; counted
// from the tile's first key.
struct AlwaysKept {
  Vec low, high, sinks;
};

// Bounds are rounded to what a float holds exactly; tiles are far shorter.
DYNATTN_INLINE Vec bound(int64_t key) {
  return broadcast(static_cast<float>(smaller<int64_t>(larger<int64_t>(key, -kMaxTile), 2 * kMaxTile)));
}

DYNATTN_INLINE AlwaysKept always_kept(const Plan& plan, int64_t query, int64_t first_key) {
  if (!plan.window) return {bound(0), bound(0), bound(0)};
  const int64_t centre = query + plan.offset - first_key, window = plan.args->window;
  return {bound(centre - window), bound(centre + window), bound(plan.args->sinks - first_key)};
}

// Scores by position become weights, in place; those not kept become `dropped_weight`. An entry's rank is the number
// of members of its group that beat it, and the first n are kept. kM: the group's size, 0 when known only at run time.
template <int kM>
static void choose_row(const Plan& plan, const RowStates& rows, int64_t row, float* scores, const AlwaysKept& always,
                       float dropped_weight) {
  const int m = kM ? kM : plan.m;
  follow_maximum(plan, rows, row, largest_lanes(scores, plan.tile));

  const Vec reference = broadcast(rows.reference[row]), exponent = broadcast(plan.exponent),
            floor = broadcast(plan.floor);
  const Vec one = broadcast(1.0f), wanted = broadcast(static_cast<float>(plan.n));
  Vec sum = load(rows.sum + row * kWidth), dropped = load(rows.dropped + row * kWidth);
  for (int start = 0; start < plan.tile; start += m * kWidth) {
    float* group = scores + start;
    Vec rank[kM ? kM : kMaxM];
    for (int i = 0; i < m; i++) rank[i] = zero();
    for (int j = 1; j < m; j++) {
      for (int i = 0; i < j; i++) {
        const Mask later = greater(load(group + j * kWidth), load(group + i * kWidth));
        rank[i] = select(later, add(rank[i], one), rank[i]);
        rank[j] = select(later, rank[j], add(rank[j], one));
      }
    }
    for (int i = 0; i < m; i++) {
      const Vec x = load(group + i * kWidth), key = load(plan.key_number + start + i * kWidth);
      const Mask allowed = greater(x, broadcast(-INFINITY));
      const Mask forced = either(both(greater(key, always.low), greater(always.high, key)), greater(always.sinks, key));
      const Mask keep = both(either(greater(wanted, rank[i]), forced), allowed);
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
