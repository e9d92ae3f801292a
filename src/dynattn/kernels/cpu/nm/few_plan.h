// Which calls are of few queries, and how their keys are cut into the ranges of tasks.
#pragma once

#include "nm/few_range.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Queries up to which nothing is packed, and rows that may share a key head: all by measurement. More queries fill
// the register tiles of packed query blocks. Wide values cannot stay where they lie there, so that packing them pays
// for more queries only.
#ifdef DYNATTN_PAIRS
constexpr int64_t kFewQueries = 8;
#else
constexpr int64_t kFewQueries = 6;
#endif
constexpr int64_t kFewQueriesWide = 12;
constexpr int64_t kWideValue = 64;  // a value_dim above it is wide
constexpr int64_t kFewRows = 64;

constexpr int64_t kRangeKeys = 512;   // keys a range, at least
constexpr int64_t kRangeTasks = 256;  // ranges are not multiplied beyond about so many tasks
constexpr int64_t kTasksEach = 4;     // heads are taken together as long as each thread finds so many tasks

// Whether a call reads keys and values in place, and only once.
static bool are_few(const NMForwardArgs& args) {
  if (args.needs_grad || args.drop_below != 0) return false;
  const int64_t most = args.value_dim > kWideValue ? kFewQueriesWide : kFewQueries;
  return args.q_len <= most && args.q_len * (args.heads / args.kv_heads) <= kFewRows;
}

// Whether the rows of all heads for one key lie side by side, nearer than those of the next key.
static bool are_side_by_side(const Plan& plan, const int64_t strides[3]) {
  return plan.pages.table != nullptr || strides[1] < strides[2];
}

// Whether rows that choose independently keep nearly all keys between them, so that nearly all values are read.
static bool reads_most_values(const Plan& plan, int64_t rows) {
  constexpr double kNearlyAll = 0.85;
  double left = 1;
  for (int64_t r = 0; r < rows && left > 1 - kNearlyAll; r++) left *= 1 - static_cast<double>(plan.n) / plan.m;
  return left <= 1 - kNearlyAll;
}

static Few plan_few(Plan& plan) {
  const NMForwardArgs& args = *plan.args;
  plan.rows = 1;  // no padding
  Few few = {};
  few.plan = &plan;
  few.heads = args.batch * args.kv_heads;
  few.heads_per_kv = args.heads / args.kv_heads;
  few.rows = few.heads_per_kv * args.q_len;
  few.together = 1;
  const int64_t most = larger<int64_t>(1, smaller(ceil_div(args.kv_len, kRangeKeys), ceil_div(kRangeTasks, few.heads)));
  few.range_tiles = larger<int64_t>(1, ceil_div(plan.tiles, most));
  few.ranges = larger<int64_t>(1, ceil_div(plan.tiles, few.range_tiles));

  few.key_width = round_up(args.head_dim, kWidth);
  few.keys_in_place = args.dtype == DYNATTN_FLOAT32 && few.key_width == args.head_dim;
  few.values_in_place = args.dtype == DYNATTN_FLOAT32 && value_width(plan) == args.value_dim;
#ifdef DYNATTN_PAIRS
  few.pairs = args.dtype == DYNATTN_BFLOAT16 && args.head_dim % kPairWidth == 0 && args.value_dim % kPairWidth == 0 &&
              plan.tile % kPairWidth == 0;
  if (few.pairs && (plan.chunk % 2 != 0 || value_width(plan) != args.value_dim)) {
    plan.chunk = 2, plan.chunks = static_cast<int>(args.value_dim / kPairWidth);
  }
  plan.rounds = few.pairs;
#endif
  few.most_values = reads_most_values(plan, few.rows);
  Arena states = {0, 0};
  lay_rows(plan, few.rows, states);
  few.states_bytes = states.used;
  return few;
}

// The key heads of a task: as many as leave enough tasks for the threads, of those that all calls have.
static int64_t heads_together(const Few& few, int64_t tasks, int threads) {
  const NMForwardArgs& args = *few.plan->args;
  if (!are_side_by_side(*few.plan, args.key_strides) || !are_side_by_side(*few.plan, args.value_strides)) return 1;
  for (int64_t heads = args.kv_heads; heads > 1; heads--) {
    if (args.kv_heads % heads == 0 && tasks / heads >= kTasksEach * threads) return heads;
  }
  return 1;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
