// The list of what a row keeps: scores, and the numbers of their value rows.
#pragma once

#include "common/threshold.h"

namespace dynattn::DYNATTN_NAMESPACE {

static const int32_t kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Appends what a row keeps of `length` scores, the first of which is key `first`: the scores, and the numbers of their
// value rows, which count up from `base`. The lists hold `count` entries so far; the new count is returned. `scores`
// may be the row's own front, since nothing is written that has not been read. `largest` becomes the larger of itself
// and all scores that were seen, of which those that a threshold drops are smaller than any that it keeps; where
// positions decide too (kReaches), and all scores that were listed. `keys` are the lanes' keys within the tile.
template <bool kReaches>
DYNATTN_INLINE int64_t list_scores(const RowChoice& choice, const float* row, const float* keys, int64_t first,
                                   int64_t length, int32_t base, float* scores, int32_t* numbers, int64_t count,
                                   Vec& largest) {
  Vec number = add_integers(broadcast_integer(base), load_any(reinterpret_cast<const float*>(kLanes)));
  const Vec next = broadcast_integer(kWidth);
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(row + at);
    const uint32_t kept = kReaches ? kept_lanes(choice, x, first + at, load(keys + at))
                                   : kept_lanes(choice.threshold, x, first + at);
    largest = max(largest, kReaches ? select(mask_of(kept), x, broadcast(-INFINITY)) : x);
    store_any(scores + count, compress(kept, x));
    store_any(reinterpret_cast<float*>(numbers + count), compress(kept, number));
    count += __builtin_popcount(kept);
    number = add_integers(number, next);
  }
  return count;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
