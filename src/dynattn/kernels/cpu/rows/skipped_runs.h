// What running maxima skip of a query on a cache: of its scores, which are known whole, runs of keys that the rule drops
// are forbidden before the row keeps the rest.
#pragma once

#include "rows/few_call.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Where a query notes which runs it keeps; NULL where nobody asks.
static uint8_t* noted_runs(const SkipForwardArgs& rule, int64_t batch, int64_t index) {
  const NMForwardArgs& args = rule.call;
  if (rule.kept == nullptr) return nullptr;
  return rule.kept + (batch * args.heads + index) * ceil_div(args.kv_len, DYNATTN_SKIP_KEYS);
}

// The largest of a run's scores, by lane: NaN and +inf as the largest float.
DYNATTN_INLINE Vec largest_of_run(const float* scores) {
  const Vec infinity = broadcast(INFINITY), most = broadcast(FLT_MAX);
  Vec largest = broadcast(-INFINITY);
#pragma GCC unroll 16
  for (int i = 0; i < DYNATTN_SKIP_KEYS; i += kWidth) {
    const Vec x = load(scores + i);
    largest = max(largest, select(greater(infinity, x), x, most));
  }
  return largest;
}

// Scores lie in the order of keys, as many as make whole runs.
static void forbid_skipped(const Plan& plan, const SkipForwardArgs& rule, float* scores, uint8_t* noted) {
  const Vec forbidden = broadcast(-INFINITY), margin = broadcast(rule.margin * kLog2e / plan.exponent);
  Vec so_far = forbidden;  // in all lanes
  const int64_t runs = ceil_div(plan.args->kv_len, DYNATTN_SKIP_KEYS);
  for (int64_t run = 0; run < runs; run++) {
    float* const first = scores + run * DYNATTN_SKIP_KEYS;
    const Vec largest = largest_of_run(first);
    // the difference is exact where scores are large and near each other; so_far - margin would not be
    const uint32_t below = bits(greater(sub(so_far, largest), margin));
    const bool kept = (bits(greater(largest, forbidden)) & ~below) != 0;
    if (bits(greater(largest, so_far)) != 0) so_far = broadcast(reduce_max(largest));
    if (noted != nullptr) noted[run] = kept;
    if (kept) continue;
    for (int i = 0; i < DYNATTN_SKIP_KEYS; i += kWidth) store(first + i, forbidden);
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
