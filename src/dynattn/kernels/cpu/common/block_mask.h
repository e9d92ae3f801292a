// Blocks of queries and keys that are dropped whole, for methods that keep blocks of keys for blocks of queries. A
// dropped block is not read where nothing else of its band of rows and tile of keys is kept.
#pragma once

#include "common/kept_blocks.h"
#include "common/mask.h"
#include "common/reached_keys.h"

namespace dynattn::DYNATTN_NAMESPACE {

// A query's blocks as a bias over a tile, by position: 0 where a key is kept, -inf where its block is dropped.
static void lay_block_bias(const Plan& plan, const BlockColumns& columns, const uint8_t* row, int64_t first_key,
                           float* to) {
  alignas(64) float by_key[kMaxTile];
  int64_t end = columns.size - first_key % columns.size;  // of block i
  for (int64_t key = 0, i = 0; key < plan.tile; i++, end += columns.size) {
    const float bias = i >= columns.count || row[i] != 0 ? 0.0f : -INFINITY;  // no keys lie behind the last block
    for (; key < end && key < plan.tile; key++) by_key[key] = bias;
  }
  for (int position = 0; position < plan.tile; position++) to[position] = by_key[plan.key_of[position]];
}

// Forbids what a row's blocks drop, except for `spared` keys, in the row's bias; `block_bias` is as lay_block_bias()
// makes it.
static BiasSummary forbid_dropped_blocks(const Plan& plan, const BiasSummary& row, const float* block_bias,
                                         const ReachedKeys& spared, float* bias) {
  const Vec forbidden = broadcast(-INFINITY);
  uint32_t any = 0;
  for (int position = 0; position < plan.tile; position += kWidth) {
    const Vec block = load(block_bias + position), own = load(bias + position);
    const Vec kept = select(holds(spared, load(plan.key_number + position)), own, block);
    const Vec left = select(greater(zero(), block), kept, own);
    store(bias + position, left);
    any |= bits(greater(left, forbidden));
  }
  return {any != 0 || row.unsafe, false, row.unsafe};
}

}  // namespace dynattn::DYNATTN_NAMESPACE
