// A call of few queries whose rows choose by their own scores: its tiles, and the memory of a key head from its scores
// to its output.
#pragma once

#include "nm/few_plan.h"
#include "rows/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Keys of a tile, at most. With each tile, the first of the values that a row keeps are waited for, so that shorter
// tiles would wait more often.
constexpr int64_t kFewTile = 512;

struct FewRows : Few {
  const RowPlan* row_plan;
  const SkipForwardArgs* skips;  // what one query skips before its row chooses; or NULL
};

// Tiles have about the same size, so that none is a small rest. A tile is a span of the lists.
static void make_few_row_plan(RowPlan& plan, const RowForwardArgs& rule) {
  make_row_plan(plan, rule);
  const int64_t kv_len = rule.call.kv_len, tiles = larger<int64_t>(1, ceil_div(kv_len, kFewTile));
  plan.tile = static_cast<int>(larger<int64_t>(kTile, round_up(ceil_div(kv_len, tiles), kTile)));
  plan.tiles = ceil_div(kv_len, plan.tile);
  plan.row_floats = plan.tiles * plan.tile;
  plan.spans = plan.tiles, plan.span_tiles = 1;
  plan_positions(plan);
}

static FewRows plan_few_rows(RowPlan& plan, const SkipForwardArgs* skips) { return {plan_few(plan), &plan, skips}; }

// All query rows that share a key head.
struct HeadRows {
  RowStates states;
  float* scores;     // [row][row_floats]; then weights of what is kept, at the front
  int32_t* numbers;  // [row][row_floats]: their keys, from the tile's first
  int64_t* starts;   // [row][tile + 1]: where a tile's part of them begins
  float* parts;      // [range][row][out_stride]: outputs over the ranges behind the first, whose output is in `states`
};

static HeadRows lay_head_rows(const FewRows& call, Arena& arena) {
  const RowPlan& plan = *call.row_plan;
  HeadRows head;
  head.states = lay_rows(plan, call.rows, arena);
  head.scores = arena.take<float>(call.rows * plan.row_floats);
  head.numbers = arena.take<int32_t>(call.rows * plan.row_floats);
  head.starts = arena.take<int64_t>(call.rows * (plan.spans + 1));
  head.parts = arena.take<float>((call.ranges - 1) * call.rows * head.states.out_stride);
  return head;
}

static float* range_outputs(const FewRows& call, const HeadRows& head, int64_t range) {
  return range == 0 ? head.states.out : head.parts + (range - 1) * call.rows * head.states.out_stride;
}

// A thread's memory.
struct FewRowScratch {
  FewScratch few;
  float* room;  // [row_floats], for a search among a row's scores
};

static FewRowScratch lay_few_row_scratch(const FewRows& call, Arena& arena) {
  FewRowScratch s;
  s.few = lay_few_scratch(call, arena);
  s.room = arena.take<float>(call.row_plan->row_floats + 4 * kWidth);
  return s;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
