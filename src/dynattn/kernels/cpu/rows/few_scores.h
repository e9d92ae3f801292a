// Scores of few queries whose rows choose by them, with keys that are read in place.
#pragma once

#include "rows/few_call.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Products of all rows of a task's head with one tile of keys.
static void multiply_keys(const FewRows& call, const FewScratch& scratch, int64_t tile, int64_t number) {
#ifdef DYNATTN_PAIRS
  if (call.pairs) return score_pairs(call, scratch, tile, number);
#endif
  score_in_place(call, scratch, tile, number);
}

// One tile of a head's rows, from the products: -inf where a key is forbidden, whatever its product is.
static void store_scores(const FewRows& call, const FewScratch& scratch, const HeadRows& head, int64_t first_key) {
  const RowPlan& plan = *call.row_plan;
  for (int64_t r = 0; r < call.rows; r++) {
    float* const scores = scratch.scores + r * plan.tile;
    if (const float* const bias = scratch.bias_of[r]; bias != nullptr) {
      add_bias(plan, scores, bias);
      forbid_by_bias(scores, bias, plan.tile);
    }
    memcpy(head.scores + r * plan.row_floats + first_key, scores, static_cast<size_t>(plan.tile) * sizeof(float));
  }
}

// A range of keys, for all rows of a task's heads, of which `head_of` knows the memory.
template <class HeadOf>
static void score_range(const FewRows& call, const FewScratch& scratch, const HeadOf& head_of, int64_t first_head,
                        int64_t range) {
  const RowPlan& plan = *call.row_plan;
  const NMForwardArgs& args = *plan.args;
  for (int64_t i = 0; i < call.together; i++) copy_queries(call, scratch, first_head, i);
  const char* const keys = kv_head(args, args.key, args.key_strides, first_head);
  const int64_t last = smaller((range + 1) * call.range_tiles, plan.tiles);
  for (int64_t tile = range * call.range_tiles; tile < last; tile++) {
    const int64_t first_key = tile * plan.tile;
    list_rows(plan, keys, args.key_strides, tile, scratch.key_rows);
    for (int64_t i = 0; i < call.together; i++) {
      const HeadRows head = head_of(i);
      if (make_few_biases(call, scratch, head.states, first_head + i, first_key)) {
        multiply_keys(call, scratch, tile, i);
        store_scores(call, scratch, head, first_key);
        continue;
      }
      for (int64_t r = 0; r < call.rows; r++) forbid_all(head.scores + r * plan.row_floats + first_key, plan.tile);
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
