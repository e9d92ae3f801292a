// Products along the queries, for dK and dV: each key's sum over the queries that keep it.
//
//     dV_j = Σ_i P_ij dO_i,    dK_j = Σ_i dS_ij Q_i
//
// Weights lie by query, as the choice made them. A strip of them, one vector wide, is transposed, so that a key's
// entries lie side by side; those that are kept are compressed to a list, and the list's rows are added up in
// registers. A list is as long as it has to be: what is dropped costs nothing.
#pragma once

#include "common/add_rows.h"
#include "common/threshold.h"
#include "nm/picked.h"

namespace dynattn::DYNATTN_NAMESPACE {

// The number of queries in a query block. Their rows of Q and dO stay in the first-level cache while all keys of a tile
// add them up.
constexpr int kBackwardQueryBlock = 48;
static_assert(kBackwardQueryBlock % kWidth == 0, "strips are whole vectors high");

// Kept entries of one key: their weights, the gradients of their scores, and their rows in the query block.
struct KeyList {
  alignas(
      64) float weights[2 * kBackwardQueryBlock + kWidth];  // twice, since two survivors of a group may be one key's
  alignas(64) float gradients[2 * kBackwardQueryBlock + kWidth];
  alignas(64) int32_t rows[2 * kBackwardQueryBlock + kWidth];
  int count;
};

// kWidth columns of a query block's weights, transposed: [column][row].
struct Strip {
  alignas(64) float weights[kWidth * kBackwardQueryBlock];
  alignas(64) float gradients[kWidth * kBackwardQueryBlock];
  alignas(64) float places[kWidth * kBackwardQueryBlock];  // of survivors, in their groups
};

// Rows of a query block that were chosen in one way, and where their weights begin.
struct RowSet {
  int count;
  alignas(64) int32_t ids[kBackwardQueryBlock];
  const float* weights[kBackwardQueryBlock];
  const float* gradients[kBackwardQueryBlock];
  const uint32_t* choice[kBackwardQueryBlock];
};

// One vector of each row of the set, row(i), transposed into `to`.
template <class Row>
DYNATTN_INLINE void transpose_rows(const RowSet& set, Row row, float* to) {
  for (int first = 0; first < set.count; first += kWidth) {
    Vec block[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) block[i] = first + i < set.count ? row(first + i) : zero();
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) store(to + i * kBackwardQueryBlock + first, block[i]);
  }
}

// Vector `at` of every row of the set, transposed.
static void transpose_strip(const RowSet& set, const float* const rows[kBackwardQueryBlock], int at, float* to) {
  transpose_rows(set, [&](int i) { return load(rows[i] + at); }, to);
}

// Transposes the places that the choice words number `word` hold, as floats.
template <int kBits>
static void transpose_places(const RowSet& set, int word, float* to) {
  Vec numbers[1 << kBits];
  for (int place = 0; place < 1 << kBits; place++) numbers[place] = broadcast(static_cast<float>(place));
  transpose_rows(set, [&](int i) { return pick<kBits>(numbers, set.choice[i][word]); }, to);
}

DYNATTN_INLINE void append(KeyList& list, uint32_t kept, Vec weights, Vec gradients, Vec ids) {
  store_any(list.weights + list.count, compress(kept, weights));
  store_any(list.gradients + list.count, compress(kept, gradients));
  store_any(reinterpret_cast<float*>(list.rows + list.count), compress(kept, ids));
  list.count += __builtin_popcount(kept);
}

DYNATTN_INLINE Vec load_ids(const int32_t* ids) { return load(reinterpret_cast<const float*>(ids)); }

// Takes column `lane` of a strip of survivors of groups of 2^kBits keys. Each survivor goes to the list of its place.
template <int kBits>
static void list_survivors(const RowSet& set, const Strip& strip, int lane, KeyList lists[1 << kBits]) {
  constexpr int kM = 1 << kBits;
  const int column = lane * kBackwardQueryBlock;
  for (int first = 0; first < set.count; first += kWidth) {
    const Vec weights = load(strip.weights + column + first), gradients = load(strip.gradients + column + first);
    const Vec places = load(strip.places + column + first), ids = load_ids(set.ids + first);
    uint32_t rest = first_lanes(set.count - first);
#pragma GCC unroll 4
    for (int slot = 0; slot < kM; slot++) {  // `rest`: those whose place is this slot or a later one
      const uint32_t later = slot + 1 < kM ? rest & bits(greater(places, broadcast(static_cast<float>(slot)))) : 0;
      append(lists[slot], rest & ~later, weights, gradients, ids);
      rest = later;
    }
  }
}

// Takes column `lane` of a strip of weights by position. The weights of entries that are not kept are below zero.
static void list_kept(const RowSet& set, const Strip& strip, int lane, KeyList& list) {
  const int column = lane * kBackwardQueryBlock;
  for (int first = 0; first < set.count; first += kWidth) {
    const Vec weights = load(strip.weights + column + first), gradients = load(strip.gradients + column + first);
    const uint32_t dropped = bits(greater(zero(), weights));  // false for NaN, which goes on
    append(list, first_lanes(set.count - first) & ~dropped, weights, gradients, load_ids(set.ids + first));
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
