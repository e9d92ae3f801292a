// Where the rows of keys or values lie, in pages or one behind another.
#pragma once

#include "common/dtypes.h"
#include "common/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// The rows of a tile and of the tile behind it, which is prefetched.
struct RowPlaces {
  const char* runs[2 * kMaxTile / kRunKeys + 2];  // row 0 of each run of kRunKeys keys
  int64_t stride;                                 // bytes from row to row within a run
  int64_t ahead;                                  // keys of the first run in front of the tile

  // The row of a key, counted from the tile's first. Beyond the last key it may be any place.
  const char* row(int64_t key) const {
    const uint64_t at = static_cast<uint64_t>(key + ahead);
    return runs[at / kRunKeys] + static_cast<int64_t>(at % kRunKeys) * stride;
  }
};

// `head` is row 0 of the head, in page 0 where there are pages.
static void find_rows(const Plan& plan, const char* head, const int64_t strides[3], int64_t first_key,
                      RowPlaces& places) {
  const NMForwardArgs& args = *plan.args;
  const int64_t size = element_size(args.dtype), first = first_key / kRunKeys;
  const int64_t end = (first_key + 2 * plan.tile - 1) / kRunKeys;
  places.stride = strides[2] * size;
  places.ahead = first_key % kRunKeys;
  for (int64_t run = first; run <= end; run++) {
    const int64_t key = run * kRunKeys;
    const char*& place = places.runs[run - first];
    if (plan.pages.table == nullptr) {
      place = head + key * places.stride;
    } else if (key < args.kv_len) {
      const int64_t page = key / plan.pages.size;
      place = head + plan.pages.table[page] * strides[0] * size + (key - page * plan.pages.size) * places.stride;
    } else {
      place = run > first ? places.runs[run - first - 1] : head;
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
