// The forward of 32 queries of one head: a block of keys at a time, scores, weights and values.
#pragma once

#include "common/arena.h"
#include "tiles/drop.h"
#include "tiles/pack.h"
#include "tiles/parts.h"
#include "tiles/products.h"
#include "tiles/skips.h"
#include "tiles/softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

// A thread's memory.
struct TileScratch {
  uint32_t* queries;  // as pack_queries() has them
  float* scores;      // [key][kQueries]
  uint32_t* weights;  // [part][group][pair of places][kLanes], or [group][pick][kLanes]
  uint32_t* picked;   // [group][pick][kLanes], as ScoreTile has them
  float* out;         // [dim][kQueries], of the output
  Allowed* allowed;
  KeptRuns* kept;  // [group]
};

static TileScratch lay_tile_scratch(const TilePlan& plan, Arena& arena) {
  TileScratch s;
  s.queries = arena.take<uint32_t>(plan.parts * plan.depth * kGroups * kTileWords);
  s.scores = arena.take<float>(int64_t{plan.padded} * kQueries);
  s.weights = arena.take<uint32_t>(plan.parts * weight_part_words(plan));
  s.picked = arena.take<uint32_t>(plan.span ? weight_part_words(plan) : 0);
  s.out = arena.take<float>(plan.dims * kTileRows * kQueries);
  s.allowed = arena.take<Allowed>(1);
  s.kept = arena.take<KeptRuns>(kGroups);
  return s;
}

// Queries on their way through the keys.
struct Pass {
  QueryTile at;
  const TileHead& head;
  const TileScratch& scratch;
  Engine& engine;
  int groups;  // of kLanes queries, that hold any
  bool careful;
  LaneState* states;  // [group]
};

// Whether what is kept of a block of keys is picked: whole vectors are chosen between, and nothing is forced.
DYNATTN_INLINE bool is_picked(const Pass& pass) {
  return pass.at.plan.span != 0 && !pass.careful && !pass.scratch.allowed->force;
}

DYNATTN_INLINE ScoreTile score_tile(const Pass& pass, int group) {
  const TilePlan& plan = pass.at.plan;
  const int64_t words = group * group_words(plan);
  return {pass.scratch.scores + group * kLanes, pass.scratch.weights + words,
          is_picked(pass) ? pass.scratch.picked + words : nullptr, plan.key_block};
}

static void score_keys(const Pass& pass, int64_t block) {
  const TilePlan& plan = pass.at.plan;
  const TileHead& head = pass.head;
  const KeyRows keys = rows_of_block(plan, block, head.keys, head.key_stride, head.packed_keys, plan.packed_from);
  score_rows(plan, pass.engine, keys, pass.scratch.queries, pass.groups, pass.scratch.scores);
}

// Of the steps of a block of keys those in which something is kept: for all queries, or for one group of them.
static void add_kept_steps(const Pass& pass, const char* values) {
  const TilePlan& plan = pass.at.plan;
  for (int64_t step = 0; step < plan.padded / kTileDepth; step++, values += plan.dims * kTileBytes) {
    const uint32_t* const weights = pass.scratch.weights + step * kTileWords;
    bool all = true;
    for (int group = 0; group < pass.groups; group++) all &= pass.scratch.kept[group].any(step);
    if (all) {
      add_columns(plan, pass.engine, values, weights, pass.groups, 1, pass.scratch.out);
      continue;
    }
    for (int group = 0; group < pass.groups; group++) {
      if (!pass.scratch.kept[group].any(step)) continue;
      add_columns(plan, pass.engine, values, weights + group * group_words(plan), 1, 1,
                  pass.scratch.out + group * kLanes);
    }
  }
}

static void add_values(const Pass& pass, int64_t block) {
  const TilePlan& plan = pass.at.plan;
  const char* const values = pass.head.values + block * value_block_bytes(plan);
  if (plan.skips) return add_kept_steps(pass, values);
  if constexpr (kPicks) {
    if (is_picked(pass)) {
      return add_picked(plan, pass.engine, values, pass.scratch.weights, pass.scratch.picked, pass.groups,
                        pass.scratch.out);
    }
  }
  add_columns(plan, pass.engine, values, pass.scratch.weights, pass.groups, plan.padded / kTileDepth, pass.scratch.out);
}

// The careful variant: values that are NaN or infinite, which were packed as 0, go to the queries that keep their key.
static void add_odd_values(const Pass& pass, int64_t block) {
  const TilePlan& plan = pass.at.plan;
  const int64_t first = block * plan.key_block;
  for (int64_t i = 0; i < plan.key_block && first + i < plan.args->kv_len; i++) {
    if (pass.head.odd[first + i] == 0) continue;
    const uint16_t* values = pass.head.own_values + (first + i) * pass.head.value_stride;
    const int place = plan.place[i];
    for (int64_t query = 0; query < pass.groups * kLanes; query++) {
      const ScoreTile tile = score_tile(pass, static_cast<int>(query / kLanes));
      const uint32_t bits = pair_row(tile, place)[query % kLanes] >> (place % 2 * 16) & 0xffffu;
      if (bits & kNotKept) continue;
      for (int64_t d = 0; d < plan.args->value_dim; d++) {
        if ((values[d] & 0x7f80u) != 0x7f80u) continue;
        pass.scratch.out[d * kQueries + query] += from_bfloat16(static_cast<uint16_t>(bits)) * from_bfloat16(values[d]);
      }
    }
  }
}

// Lanes of a group that hold a query.
DYNATTN_INLINE LaneMask present_lanes(const Pass& pass, int group) {
  return static_cast<LaneMask>((1u << smaller<int64_t>(kLanes, pass.at.count - group * kLanes)) - 1);
}

static void weigh_keys(const Pass& pass, int group, int64_t block, LaneState& state) {
  const TilePlan& plan = pass.at.plan;
  const Allowed& allowed = *pass.scratch.allowed;
  const ScoreTile tile = score_tile(pass, group);
  KeptRuns& kept = pass.scratch.kept[group];
  if (!allowed.all) mask_scores(plan, allowed, group, tile);
  if (allowed.cut && plan.m > 1) cut_scores(plan, allowed, group, tile);
  if (pass.careful && (!plan.floats || plan.biased)) clean_scores(tile, state);  // products of float32 are finite
  if (plan.skips) {
    keep_runs(plan, tile, present_lanes(pass, group), state, kept);
    note_runs(pass.at, group, block * plan.key_block, kept);
  }
  if (pass.careful) {
    follow_largest(plan, tile, state, pass.scratch.out + group * kLanes);
    if (plan.skips) forbid_others(tile, kept);
  } else if (state.open != kAllLanes) {
    open_lanes(plan, tile, state);
  }
  if (plan.floats) return weigh_parts(plan, tile, allowed, group, state);
  // behind the last key of the block, where tiles of values are padded with zeros
  for (int place = plan.key_block; place < plan.padded; place++) put_weight(tile, place, broadcast_words(0));
  if (pass.careful || !plan.in_order) {
    weigh_by_rank<ExactWeights>(plan, tile, allowed, group, pass.careful, state);
  } else if (plan.skips) {
    plan.exact ? weigh_runs<ExactWeights>(plan, tile, kept, state) : weigh_runs<RoundedWeights>(plan, tile, kept, state);
  } else if (plan.exact) {
    weigh_in_order<ExactWeights>(plan, tile, allowed, group, state);
  } else {
    weigh_in_order<RoundedWeights>(plan, tile, allowed, group, state);
  }
}

// All blocks of keys. False where the careful variant has to do it again.
static bool attend(const Pass& pass) {
  const TilePlan& plan = pass.at.plan;
  const NMForwardArgs& args = *plan.args;
  // weights are kept so far below 1 that no sum of large values overflows
  const float reference = pass.careful && pass.head.value_bound > 0x1p64f ? 64.0f : 0.0f;
  for (int group = 0; group < pass.groups; group++) {
    clear(pass.states[group]);
    pass.states[group].reference = broadcast_lanes(reference);
  }
  memset(pass.scratch.out, 0, static_cast<size_t>(plan.dims * kTileRows * kQueries) * sizeof(float));
  int64_t end = args.kv_len;
  if (args.causal) end = smaller(end, pass.at.first + pass.at.count + plan.offset);
  for (int64_t block = 0; block * plan.key_block < end; block++) {
    Allowed& allowed = *pass.scratch.allowed;
    find_allowed(pass.at, block * plan.key_block, allowed);
    if (allowed.unsafe && !pass.careful) return false;
    if (!allowed.any) continue;
    score_keys(pass, block);
    for (int group = 0; group < pass.groups; group++) weigh_keys(pass, group, block, pass.states[group]);
    if (args.drop_below > 0) {
      drop_weights(pass.at, block * plan.key_block, pass.groups, pass.careful, pass.scratch.weights);
    }
    add_values(pass, block);
    if (pass.careful && !plan.floats) add_odd_values(pass, block);
  }
  if (pass.careful) return true;
  bool holds = true;
  for (int group = 0; group < pass.groups; group++) {
    holds &= !must_repeat(plan, pass.states[group], present_lanes(pass, group));
  }
  return holds;
}

// logsumexp and counts of one query, and the factor of its output; or its sums alone.
static float finish_query(const Pass& pass, const LaneState& state, int64_t query, int lane) {
  const TilePlan& plan = pass.at.plan;
  const NMForwardArgs& args = *plan.args;
  alignas(64) float sums[5][kLanes];
  alignas(64) uint32_t counts[2][kLanes];
  store(sums[0], state.origin), store(sums[1], state.reference), store(sums[2], state.sum);
  store(sums[3], state.total), store(sums[4], state.dropped);
  store(counts[0], state.kept), store(counts[1], state.allowed);
  const float sum = sums[2][lane];
  const double total = plan.exact ? sums[3][lane] : sum;
  const bool nan = state.nan >> lane & 1, poisoned = nan || (state.infinite >> lane & 1);
  const int64_t at = (pass.at.batch * args.heads + pass.at.head) * args.q_len + query;
  if (plan.sums.sum != nullptr) {
    plan.sums.origin[at] = sums[0][lane], plan.sums.sum[at] = sums[3][lane] * exp2f(sums[1][lane]);
    return 0.0f;
  }
  if (args.logsumexp != nullptr) {
    // a float's exponent differs a little from the scale's, and a power of two of the reference likewise from e's
    const double size = plan.biased ? 1.0 : static_cast<double>(fabsf(args.scale));
    const double origin = pass.careful ? sums[0][lane] * size : 0.0;
    const double logsumexp = origin + sums[1][lane] * (size / static_cast<double>(plan.exponent)) + log(total);
    args.logsumexp[at] = nan ? NAN : poisoned ? INFINITY : sum > 0 ? static_cast<float>(logsumexp) : -INFINITY;
  }
  if (plan.counts) {
    args.kept_mass[at] = poisoned ? NAN : sum > 0 ? sums[3][lane] / (sums[3][lane] + sums[4][lane]) : 1.0f;
    args.kept[at] = static_cast<int32_t>(counts[0][lane]);
    args.allowed[at] = static_cast<int32_t>(counts[1][lane]);
  }
  const float keep = args.drop_below > 0 ? args.keep_factor : 1.0f;
  return poisoned ? NAN : sum > 0 ? keep / sum : 0.0f;
}

DYNATTN_INLINE void put_numbers(float* to, Lanes x, int64_t count) { store_first(to, x, count); }
DYNATTN_INLINE void put_numbers(uint16_t* to, Lanes x, int64_t count) {
  store_halves(to, select(is_nan(x), broadcast_words(0x7fc0u), rounded(x)), count);
}

// The outputs of 16 queries, turned and rounded. False where one overflowed, which the careful variant avoids.
template <class Number>
static bool write_outputs(const Pass& pass, int group, const float* factors) {
  const NMForwardArgs& args = *pass.at.plan.args;
  const int64_t first = pass.at.first + group * kLanes;
  const int64_t lanes = smaller<int64_t>(kLanes, pass.at.count - group * kLanes);
  Number* const out = static_cast<Number*>(args.out) + pass.at.batch * args.out_strides[0] +
                      pass.at.head * args.out_strides[1] + first * args.out_strides[2];
  const Lanes factor = load_lanes(factors);
  LaneMask finite = kAllLanes;
  for (int64_t d = 0; d < args.value_dim; d += kLanes) {
    Lanes rows[kLanes];
    for (int64_t i = 0; i < kLanes; i++) {
      rows[i] = mul(load_lanes(pass.scratch.out + (d + i) * kQueries + group * kLanes), factor);
      finite &= greater(broadcast_lanes(INFINITY), max(rows[i], sub(broadcast_lanes(0.0f), rows[i])));
    }
    transpose(rows);
    const int64_t dims = smaller<int64_t>(kLanes, args.value_dim - d);
    for (int64_t lane = 0; lane < lanes; lane++) put_numbers(out + lane * args.out_strides[2] + d, rows[lane], dims);
  }
  return (~finite & present_lanes(pass, group)) == 0;
}

static bool finish(const Pass& pass) {
  bool finite = true;
  for (int group = 0; group < pass.groups; group++) {
    alignas(64) float factors[kLanes] = {};
    for (int lane = 0; lane < kLanes && group * kLanes + lane < pass.at.count; lane++) {
      factors[lane] = finish_query(pass, pass.states[group], pass.at.first + group * kLanes + lane, lane);
    }
    if (pass.at.plan.sums.sum != nullptr) continue;
    finite &= pass.at.plan.floats ? write_outputs<float>(pass, group, factors)
                                  : write_outputs<uint16_t>(pass, group, factors);
  }
  return finite;
}

// Scores within reach of the fast variant, and values that it may multiply without looking.
static bool is_tame(const TilePlan& plan, const TileHead& head, float query_bound) {
  const float largest = query_bound * head.key_bound * static_cast<float>(plan.args->head_dim);
  const float scaled = largest * plan.multiplier * plan.exponent;
  return largest < 1e37f && scaled < kReach && head.value_bound < INFINITY;
}

// At most kQueries queries, from `first` on.
static void run_queries(const TilePlan& plan, const TileHead& head, const TileScratch& scratch, Engine& engine,
                        int64_t batch, int64_t index, int64_t first, int64_t count) {
  const NMForwardArgs& args = *plan.args;
  LaneState states[kGroups];
  const int64_t at = batch * args.query_strides[0] + index * args.query_strides[1] + first * args.query_strides[2];
  const int groups = static_cast<int>(ceil_div(count, kLanes));
  const char* const queries = element(args.query, at, args.dtype);
  const float query_bound = plan.floats ? pack_query_parts(plan, queries, count, groups, scratch.queries)
                                        : pack_queries(plan, queries, count, groups, scratch.queries);
  if (plan.floats && !fits(plan, head.key_bound, head.value_bound, query_bound)) return end_call(plan);
  // sums of rows, and weights of float32, are relative to the largest score itself, which the careful variant follows
  const bool careful = plan.floats || plan.sums.sum != nullptr || !is_tame(plan, head, query_bound);
  Pass pass = {{plan, batch, index, first, count}, head, scratch, engine, groups, careful, states};
  if (attend(pass) && (finish(pass) || pass.careful)) return;
  pass.careful = true;
  attend(pass);
  finish(pass);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
