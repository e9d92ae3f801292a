// The keys of a tile that a query reaches, vector by vector.
#pragma once

#include "common/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Keys between `low` and `high`, both excluded, and keys below `sinks`; counted from the tile's first key.
struct ReachedKeys {
  Vec low, high, sinks;
};

// Bounds are rounded to what a float holds exactly; tiles are far shorter.
DYNATTN_INLINE Vec bound(int64_t key) {
  return broadcast(static_cast<float>(smaller<int64_t>(larger<int64_t>(key, -kMaxTile), 2 * kMaxTile)));
}

DYNATTN_INLINE ReachedKeys reached_keys(const Plan& plan, const Reach& reach, int64_t query, int64_t first_key) {
  const int64_t centre = query + plan.offset - first_key;
  return {bound(centre - reach.window), bound(centre + reach.window), bound(reach.sinks - first_key)};
}

constexpr Reach kNoReach = {0, 0};

// The keys of the tile are numbers, as plan.key_number has them.
DYNATTN_INLINE Mask holds(const ReachedKeys& reached, Vec key) {
  return either(both(greater(key, reached.low), greater(reached.high, key)), greater(reached.sinks, key));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
