// Dropout of the weights of one tile, as they lie: by position, or as survivors of a choice in registers.
#pragma once

#include "common/dropout.h"
#include "common/query_block.h"
#include "nm/picked.h"

namespace dynattn::DYNATTN_NAMESPACE {

// The keys of vector `at` of a row's weights, counted from the tile's first. kBits 0: the weights lie by position; else
// they are survivors of groups of 2^kBits keys.
template <int kBits>
DYNATTN_INLINE Vec keys_of_weights(const Plan& plan, const uint32_t* choice, int at) {
  const float* keys = reinterpret_cast<const float*>(plan.key_of);  // whose bits are integers
  if constexpr (kBits == 0) {
    return load(keys + at * kWidth);
  } else {
    constexpr int kMembers = 1 << kBits;
    Vec members[kMembers];
#pragma GCC unroll 4
    for (int s = 0; s < kMembers; s++) members[s] = load(keys + (at / kBits * kMembers + s) * kWidth);
    return pick<kBits>(members, choice[at]);
  }
}

template <int kBits>
static void draw_row(const Plan& plan, const DropoutStream& stream, int64_t query, int64_t first_key,
                     const uint32_t* choice, uint32_t* left) {
  const Vec first = broadcast_integer(static_cast<int32_t>(first_key));
  const Vec drop_below = broadcast_integer(static_cast<int32_t>(plan.args->drop_below));
  const int vectors = (kBits > 0 ? kTile / 2 : plan.tile) / kWidth;
  int at = 0;
  for (; at + 2 <= vectors; at += 2) {
    const Vec keys[2] = {add_integers(keys_of_weights<kBits>(plan, choice, at), first),
                         add_integers(keys_of_weights<kBits>(plan, choice, at + 1), first)};
    draw<2>(stream, static_cast<uint32_t>(query), drop_below, keys, left + at);
  }
  if (at == vectors) return;
  const Vec keys = add_integers(keys_of_weights<kBits>(plan, choice, at), first);
  draw<1>(stream, static_cast<uint32_t>(query), drop_below, &keys, left + at);
}

// Where the weights of a row and tile begin, and how many there are.
struct RowWeights {
  int64_t at, count;
};

DYNATTN_INLINE RowWeights weights_of(const Plan& plan, BandKind kind, int64_t row) {
  const int64_t count = kind == kChosenInRegisters ? kTile / 2 : plan.tile;
  return {row / plan.rows * plan.rows * plan.tile + row % plan.rows * count, count};
}

// Draws for all rows that have weights in this tile: a bit for each weight, as the weights lie.
static void draw_tile(const QueryBlock& block, int64_t tile) {
  const Plan& plan = block.plan;
  const NMForwardArgs& args = *plan.args;
  const DropoutStream stream = open_stream(args.seed, static_cast<uint32_t>(args.first_batch + block.batch),
                                           static_cast<uint32_t>(args.first_head + block.index));
  for (int64_t row = 0; row < block.count; row++) {
    const BandKind kind = block.scratch.kinds[row / plan.rows];
    if (kind == kSkipped) continue;
    const int64_t query = block.first + row, first_key = tile * plan.tile;
    const uint32_t* choice = block.scratch.choice + row * (kTile / 2 / kWidth);
    uint32_t* left = block.scratch.left + weights_of(plan, kind, row).at / kWidth;
    if (kind == kByPosition) {
      draw_row<0>(plan, stream, query, first_key, choice, left);
    } else if (plan.layout == Layout::kOneOfTwo) {
      draw_row<1>(plan, stream, query, first_key, choice, left);
    } else {
      draw_row<2>(plan, stream, query, first_key, choice, left);
    }
  }
}

// Weights times their factors; what was drawn to be dropped becomes `dropped`. Weights below zero mark entries that are
// not kept, and stay.
static void drop_weights(const QueryBlock& block, float dropped) {
  const Plan& plan = block.plan;
  const Vec factor = broadcast(plan.args->keep_factor), otherwise = broadcast(dropped);
  for (int64_t row = 0; row < block.count; row++) {
    const BandKind kind = block.scratch.kinds[row / plan.rows];
    if (kind == kSkipped) continue;
    const RowWeights weights = weights_of(plan, kind, row);
    for (int64_t at = weights.at; at < weights.at + weights.count; at += kWidth) {
      const Vec weight = load(block.scratch.scores + at);
      const Vec left = select(mask_of(block.scratch.left[at / kWidth]), mul(weight, factor), otherwise);
      store(block.scratch.scores + at, select(greater(zero(), weight), weight, left));
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
