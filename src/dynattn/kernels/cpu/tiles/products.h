// The products of one block of keys, which forward and backward share, so that a score has the same bits in both.
#pragma once

#include "tiles/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Rows of keys, or of values, of one block, in place or packed.
struct KeyRows {
  const char* first;
  int64_t stride;  // bytes
};

// `own`: the caller's rows, of the whole head. `packed`: from block `packed_first` on.
DYNATTN_INLINE KeyRows rows_of_block(const TilePlan& plan, int64_t block, const char* own, int64_t own_stride,
                                     const char* packed, int64_t packed_first) {
  if (block < plan.packed_from) return {own + block * plan.key_block * own_stride, own_stride};
  return {packed + (block - packed_first) * key_block_bytes(plan), packed_key_bytes(plan)};
}

// S^T = K Q^T: scores[key][kQueries] of one block of keys, for queries as pack_queries() has them.
static void score_rows(const TilePlan& plan, Engine& engine, const KeyRows& keys, const uint32_t* queries, int groups,
                       float* scores) {
  const Operand a = {keys.first, kTileRows * keys.stride, kTileDepth * 2, keys.stride};
  const Operand b = {reinterpret_cast<const char*>(queries), kTileBytes, groups * kTileBytes, 64};
  const Terms terms = terms_of(plan.parts, plan.depth * kTileDepth * 2, plan.depth * groups * kTileBytes);
  multiply_panel<false>(engine, a, ceil_div(plan.key_block, kTileRows), b, groups, terms, plan.depth, scores,
                        kQueries);
}

// O^T += V^T P^T: out[dim][kQueries], of `steps` times 32 places of a block of values as pack_value_blocks() has them, and
// of weights as [part][group][pair of places][kLanes].
static void add_columns(const TilePlan& plan, Engine& engine, const char* values, const uint32_t* weights, int groups,
                        int64_t steps, float* out) {
  const Operand a = {values, kTileBytes, plan.parts * plan.dims * kTileBytes, 64};
  const Operand b = {reinterpret_cast<const char*>(weights), plan.padded / kTileDepth * kTileBytes, kTileBytes, 64};
  const Terms terms = terms_of(plan.parts, plan.dims * kTileBytes, weight_part_words(plan) * int64_t{sizeof(uint32_t)});
  multiply_panel<true>(engine, a, plan.dims, b, groups, terms, steps, out, kQueries);
}

// The same of weights that are picked, [group][pick][kLanes], by an engine that takes such.
template <class Picking>
static void add_picked(const TilePlan& plan, Picking& engine, const char* values, const uint32_t* weights,
                       const uint32_t* picked, int groups, float* out) {
  const Picks picks = {weights, picked, group_words(plan), plan.dims * kTileBytes, plan.padded / kTileDepth};
  for (int64_t tile = 0; tile < plan.dims; tile++, values += kTileBytes, out += kTileRows * kQueries) {
    multiply_picked(engine, values, picks, plan.span, groups, out, kQueries);
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
