// Rows that choose by their own scores, on tiles: the scores of 32 queries and all keys, what each query keeps, and then
// weights and values a block of keys at a time. Numbers that ask for the careful variant end the call, which other kernels
// then compute.
#pragma once

#include "tiles/forward.h"
#include "tiles/row_line.h"

namespace dynattn::DYNATTN_NAMESPACE {

// A thread's memory besides TileScratch.
struct RowScratch {
  float* scores;   // [key][kQueries], of all keys
  float* weights;  // [key][kLanes], of one group, by mass
  uint8_t* live;   // [block of keys]: whether some query may attend to some key
};

static RowScratch lay_row_scratch(const TilePlan& plan, Arena& arena) {
  const int64_t keys = plan.rule == nullptr ? 0 : plan.key_blocks * plan.key_block;
  RowScratch s;
  s.scores = arena.take<float>(keys * kQueries);
  s.weights = arena.take<float>(keys > 0 && plan.rule->mass > 0.0f ? keys * kLanes : 0);
  s.live = arena.take<uint8_t>(keys > 0 ? plan.key_blocks : 0);
  return s;
}

// Scores of all blocks of keys that some query may attend. False where a bias asks for the careful variant.
static bool score_all(const Pass& pass, const RowScratch& room, int64_t blocks) {
  const TilePlan& plan = pass.at.plan;
  Allowed& allowed = *pass.scratch.allowed;
  for (int64_t block = 0; block < blocks; block++) {
    find_allowed(pass.at, block * plan.key_block, allowed);
    if (allowed.unsafe) return false;
    room.live[block] = allowed.any;
    if (!allowed.any) continue;
    float* const scores = room.scores + block * plan.key_block * kQueries;
    const TileHead& head = pass.head;
    const KeyRows keys = rows_of_block(plan, block, head.keys, head.key_stride, head.packed_keys, plan.packed_from);
    score_rows(plan, pass.engine, keys, pass.scratch.queries, pass.groups, scores);
    if (allowed.all) continue;
    for (int group = 0; group < pass.groups; group++) {
      mask_scores(plan, allowed, group, {scores + group * kLanes, nullptr, nullptr, plan.key_block});
    }
  }
  return true;
}

static void find_lines_of_group(const Pass& pass, const RowScratch& room, int64_t blocks, int group,
                                RowLines& lines) {
  const TilePlan& plan = pass.at.plan;
  const RowForwardArgs& rule = *plan.rule;
  const GroupScores scores = {room.scores + group * kLanes, room.weights, room.live, blocks, plan.key_block};
  RowStatistics seen;
  see_rows(scores, seen);
  LaneState& state = pass.states[group];
  clear(state);
  const Lanes largest = mul(load_lanes(seen.largest), broadcast_lanes(plan.exponent));
  const LaneMask some = greater(largest, broadcast_lanes(-INFINITY));
  state.reference = select(some, round_lanes(largest), broadcast_lanes(0.0f));
  if (rule.mass > 0.0f) return lines_by_mass(plan, scores, seen, rule.mass, lines);
  if (rule.weight >= 0.0f) return lines_by_weight(plan, scores, seen, rule.weight, lines);
  lines_by_rank(rule, scores, seen, lines);
}

// Weights of what a group of queries keeps of a block of keys, and zeros for the rest.
static void weigh_kept(const Pass& pass, const RowScratch& room, int64_t block, int group, const RowLines& lines) {
  const TilePlan& plan = pass.at.plan;
  const int64_t first = block * plan.key_block;
  const ScoreTile tile = {room.scores + first * kQueries + group * kLanes,
                          pass.scratch.weights + group * group_words(plan), nullptr, plan.key_block};
  const Lanes least = load_lanes(lines.least), last = load_lanes(lines.last), forbidden = broadcast_lanes(-INFINITY);
  RoundedWeights weights(plan, pass.states[group]);
  for (int key = 0; key < tile.keys; key += 2) {
    Words words[2];
    for (int i = 0; i < 2; i++) {
      const Lanes x = score(tile, key + i);
      const LaneMask late = greater(broadcast_lanes(static_cast<float>(first + key + i)), last);
      const unsigned kept = greater(x, least) | (~greater(least, x) & ~late);
      words[i] = weights(select(static_cast<LaneMask>(kept), x, forbidden));
    }
    store(pair_row(tile, key), pair(words[0], words[1]));
  }
  weights.finish(pass.states[group]);
}

// At most kQueries queries; false where this variant's numbers do not hold.
static bool attend_rows(const Pass& pass, const RowScratch& room) {
  const TilePlan& plan = pass.at.plan;
  const NMForwardArgs& args = *plan.args;
  int64_t end = args.kv_len;
  if (args.causal) end = larger<int64_t>(0, smaller(end, pass.at.first + pass.at.count + plan.offset));
  const int64_t blocks = ceil_div(end, plan.key_block);
  if (!score_all(pass, room, blocks)) return false;
  RowLines lines[kGroups];
  for (int group = 0; group < pass.groups; group++) find_lines_of_group(pass, room, blocks, group, lines[group]);
  memset(pass.scratch.out, 0, static_cast<size_t>(plan.dims * kTileRows * kQueries) * sizeof(float));
  for (int64_t block = 0; block < blocks; block++) {
    if (room.live[block] == 0) continue;
    for (int group = 0; group < pass.groups; group++) weigh_kept(pass, room, block, group, lines[group]);
    const char* const values = pass.head.values + block * value_block_bytes(plan);
    add_columns(plan, pass.engine, values, pass.scratch.weights, pass.groups, plan.padded / kTileDepth, pass.scratch.out);
  }
  return finish(pass);
}

static void run_row_queries(const TilePlan& plan, const TileHead& head, const TileScratch& scratch,
                            const RowScratch& room, Engine& engine, int64_t batch, int64_t index, int64_t first,
                            int64_t count) {
  const NMForwardArgs& args = *plan.args;
  LaneState states[kGroups];
  const int64_t at = batch * args.query_strides[0] + index * args.query_strides[1] + first * args.query_strides[2];
  const int groups = static_cast<int>(ceil_div(count, kLanes));
  const float bound = pack_queries(plan, element(args.query, at, args.dtype), count, groups, scratch.queries);
  const Pass pass = {{plan, batch, index, first, count}, head, scratch, engine, groups, false, states};
  if (!is_tame(plan, head, bound) || !attend_rows(pass, room)) end_call(plan);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
