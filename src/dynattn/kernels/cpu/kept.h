// What a row keeps as a list: scores, and the numbers of their value rows.
#pragma once

#include "cut.h"

namespace dynattn::DYNATTN_NAMESPACE {

static const int32_t kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Kept scores of `length` from key `first` on go to the front of `scores`, `count` of them there already, with the
// numbers of their value rows, the first of which is `base`. What is written has been read.
// `largest` follows the scores.
DYNATTN_INLINE int64_t list_scores(const Cut& cut, const float* row, int64_t first, int64_t length, int32_t base,
                                   float* scores, int32_t* numbers, int64_t count, Vec& largest) {
  Vec number = add_integers(broadcast_integer(base), load_any(reinterpret_cast<const float*>(kLanes)));
  const Vec next = broadcast_integer(kWidth);
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(row + at);
    const uint32_t kept = kept_lanes(cut, x, first + at);
    largest = max(largest, x);
    store_any(scores + count, compress(kept, x));
    store_any(reinterpret_cast<float*>(numbers + count), compress(kept, number));
    count += __builtin_popcount(kept);
    number = add_integers(number, next);
  }
  return count;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
