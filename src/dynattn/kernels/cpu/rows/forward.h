// Computes a query block whose rows choose by their own scores. A whole row has to be known before anything of it can
// be dropped, so the block goes three times over its keys:
//
//     1. scores of all rows and keys, which stay in the second-level cache;
//     2. row by row, what is kept: its weights go to the front of the row, with the numbers of its value rows;
//     3. weights times values, a span of keys at a time for all rows, so that its values are read while they are near.
//
// Where most of the block's pairs are kept by weight or by mass, weights stay where scores were (whole_rows.h).
#pragma once

#include <type_traits>

#include "common/add_rows.h"
#include "common/bias.h"
#include "common/dropout.h"
#include "nm/scores.h"
#include "rows/find_mass.h"
#include "rows/find_threshold.h"
#include "rows/kept_list.h"
#include "rows/whole_rows.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int64_t kRowScores = 96 * 1024;  // scores of a query block, unless one band of rows has more
// Bytes of the values of a span, for one chunk: as many as the first-level cache holds. Where a quarter of the keys or
// less is kept, twice as many: rows then keep too few of a span to pay for its beginning and end, and those few may
//     come from further away.
constexpr int64_t kSpanBytes = 32 * 1024;
constexpr float kSparse = 0.25f;
constexpr float kMost = 0.5f;  // of the scores of a block, above which no list is made
constexpr float kMostGrowth = 100.0f;  // a power of two that leaves room for a sum

struct RowPlan : Plan {
  const RowForwardArgs* rule;
  int64_t row_floats;         // scores of a row: whole tiles
  int64_t spans, span_tiles;  // tiles of keys a span
};

// The share of its keys that a long row keeps, as far as the rule tells.
static float share_of(const RowForwardArgs& rule) {
  if (rule.weight >= 0.0f || rule.mass > 0.0f) return 0.0f;
  const float share = static_cast<float>(rule.numerator) / static_cast<float>(rule.denominator);
  return smaller(share, static_cast<float>(rule.most) / static_cast<float>(larger<int64_t>(rule.call.kv_len, 1)));
}

static void make_row_plan(RowPlan& plan, const RowForwardArgs& rule) {
  make_plan(plan, rule.call, {nullptr, 0}, false, true);
  plan.rule = &rule;
  plan.row_floats = plan.tiles * plan.tile;
  const int64_t span_bytes = share_of(rule) > kSparse ? kSpanBytes : 2 * kSpanBytes;
  const int64_t tile_bytes = int64_t{plan.tile} * plan.chunk * kWidth * static_cast<int64_t>(sizeof(float));
  plan.span_tiles = larger<int64_t>(1, span_bytes / tile_bytes);
  plan.spans = ceil_div(plan.tiles, plan.span_tiles);
  if (plan.query_blocks == 0) return;
  const int64_t bands = larger<int64_t>(1, kRowScores / larger<int64_t>(plan.row_floats, 1) / plan.rows);
  plan.query_block = static_cast<int>(smaller<int64_t>(plan.query_block, bands * plan.rows));
  plan.query_blocks = ceil_div(rule.call.q_len, plan.query_block);
}

// A thread's memory for one query block.
struct RowScratch {
  Scratch block;
  float* scores;     // [row][row_floats]; then weights of what is kept, at the front
  int32_t* numbers;  // [row][row_floats]: of their value rows, from the span's first, as chunks of values lie
  float* room;       // [row_floats], for a search among them
  int64_t* starts;   // [row][span + 1]: where a span's part of them begins
  Threshold* lines;  // [row]
};

static RowScratch lay_row_scratch(const RowPlan& plan, Arena& arena) {
  RowScratch s;
  s.block = lay_scratch(plan, arena);
  s.scores = arena.take<float>(plan.query_block * plan.row_floats);
  s.numbers = arena.take<int32_t>(plan.query_block * plan.row_floats);
  s.room = arena.take<float>(plan.row_floats + 4 * kWidth);
  s.starts = arena.take<int64_t>(plan.query_block * (plan.spans + 1));
  s.lines = arena.take<Threshold>(plan.query_block);
  return s;
}

// Keys that causality leaves to a query.
DYNATTN_INLINE int64_t keys_of(const Plan& plan, int64_t query) {
  const NMForwardArgs& args = *plan.args;
  return args.causal ? larger<int64_t>(0, smaller<int64_t>(args.kv_len, query + plan.offset + 1)) : args.kv_len;
}

DYNATTN_INLINE void forbid_all(float* scores, int count) {
  for (int i = 0; i < count; i += kWidth) store(scores + i, broadcast(-INFINITY));
}

// Where scores may be NaN, a bias of -inf does not make -inf of them.
static void forbid_by_bias(float* scores, const float* bias, int count) {
  const Vec lowest = broadcast(-FLT_MAX), forbidden = broadcast(-INFINITY);
  for (int i = 0; i < count; i += kWidth) {
    store(scores + i, select(greater(lowest, load(bias + i)), forbidden, load(scores + i)));
  }
}

// Scores of one band and tile, rows `stride` apart.
template <int kR, int kV>
static void score_tile(const QueryBlock& block, int64_t band, int64_t tile, const BandBias& bias, float* scores,
                       int64_t stride) {
  const Plan& plan = block.plan;
  const int64_t dim = plan.args->head_dim;
  const float* query = block.scratch.queries + band * kR * dim;
  const float* key = block.head.keys + tile * plan.tile * dim;
  const ScoreTile to = {scores, stride, nullptr, bias.rows, bias.stride};
  if (bias.rows == nullptr) return score_band<kR, kV, false, false>(plan, query, key, to);
  score_band<kR, kV, true, false>(plan, query, key, to);
  if (!block.careful) return;
  for (int r = 0; r < kR; r++) forbid_by_bias(scores + r * stride, bias.rows + r * bias.stride, plan.tile);
}

// Step 1. Returns false where a bias asks for the careful variant.
template <int kR, int kV>
static bool score_rows(const QueryBlock& block, float* scores, int64_t stride) {
  const Plan& plan = block.plan;
  for (int64_t tile = 0; tile < plan.tiles; tile++) {
    TileBias biases(block, tile);
    const int64_t first_key = biases.first_key;
    for (int64_t band = 0; band * kR < block.count; band++) {
      const int64_t first = block.first + band * kR;
      const int64_t last = smaller(first + kR, block.first + block.count) - 1;
      if (allowed_keys(plan, last, first_key) == 0) continue;
      const BandBias bias = biases.of_band(first, last, nullptr);
      if (bias.unsafe && !block.careful) return false;
      float* to = scores + band * kR * stride + first_key;
      if (bias.any) {
        score_tile<kR, kV>(block, band, tile, bias, to, stride);
      } else {
        for (int r = 0; r < kR; r++) forbid_all(to + r * stride, plan.tile);
      }
    }
  }
  return true;
}

// Whether a row keeps a key, of which its rule says whether it is chosen.
static bool keeps(const Plan& plan, int64_t query, int64_t key, bool chosen) {
  const NMForwardArgs& args = *plan.args;
  const int64_t position = query + plan.offset;
  const bool kept = chosen || (plan.window && reaches(joined_reach(args), position, key));
  return kept && (!plan.cut || reaches(cutting_reach(args), position, key));
}

static uint8_t poison_of(float score) { return score < INFINITY ? 0 : score == INFINITY ? kInfinite : kNan; }

// Scores that are NaN or +inf, of which the first `wanted` are chosen: they rank first, poison the row that keeps them,
// and go on as the largest float.
static uint8_t settle_row(const Plan& plan, int64_t query, float* scores, int64_t length, int64_t wanted) {
  uint8_t poison = 0;
  for (int64_t i = 0; i < length; i++) {
    const uint8_t kind = poison_of(scores[i]);
    if (kind == 0) continue;
    if (keeps(plan, query, i, wanted-- > 0)) poison |= kind;
    scores[i] = FLT_MAX;
  }
  return poison;
}

// The first score that is NaN or, where none is, the first +inf; -1 where there is neither.
static int64_t first_poison(const float* scores, int64_t length) {
  int64_t first = -1;
  uint8_t most = 0;
  for (int64_t i = 0; i < length; i++) {
    const uint8_t kind = poison_of(scores[i]);
    if (kind > most) most = kind, first = i;
  }
  return first;
}

static Threshold threshold_of_row(const RowPlan& plan, const QueryBlock& block, int64_t i, float* scores, int64_t keys,
                                  int64_t allowed, float* room) {
  const int64_t length = round_up(keys, plan.tile), query = block.first + i;
  const RowForwardArgs& rule = *plan.rule;
  uint8_t& poison = block.scratch.rows.poisoned[i];
  if (allowed == 0) return kKeepNothing;
  if (rule.weight >= 0.0f || rule.mass > 0.0f) {
    const int64_t one = block.careful ? first_poison(scores, length) : -1;
    if (one >= 0) {
      if (keeps(plan, query, one, true)) poison = poison_of(scores[one]);
      poison |= settle_row(plan, query, scores, length, 0);
      return keep_alone(static_cast<int32_t>(one));
    }
    return rule.mass > 0.0f ? threshold_by_mass(plan, scores, length, rule.mass, room)
                            : threshold_by_weight(plan, scores, length, rule.weight);
  }
  const int64_t wanted = wanted_by_rank(rule, allowed);
  if (block.careful) poison = settle_row(plan, query, scores, length, wanted);
  return threshold_by_rank(scores, keys, allowed, wanted, room);
}

// Sums the weights that a row drops, relative to `largest`, the largest score of all, by lane.
static void sum_dropped(const Plan& plan, int64_t query, const float* scores, int64_t length,
                        const Threshold& threshold, float largest, float* sums) {
  const Vec reference = broadcast(largest), exponent = broadcast(plan.exponent);
  const Vec floor = broadcast(plan.floor), forbidden = broadcast(-INFINITY);
  Vec sum = zero();
  for (int64_t first = 0; first < length; first += plan.tile) {
    const RowChoice choice = choice_of_row(plan, threshold, query, first);
    for (int64_t at = 0; at < plan.tile; at += kWidth) {
      const Vec x = load(scores + first + at);
      const uint32_t kept = kept_lanes(choice, x, first + at, load(plan.key_number + at));
      const Mask dropped = mask_of(bits(greater(x, forbidden)) & ~kept);
      sum = add(sum, select(dropped, exp2_scaled(sub(x, reference), exponent, floor), zero()));
    }
  }
  store(sums, sum);
}

// Moves the scores that a row keeps to its front. Returns the largest of them.
static float list_row(const RowPlan& plan, const RowScratch& scratch, int64_t i, int64_t query, int64_t length,
                      const Threshold& threshold) {
  float* scores = scratch.scores + i * plan.row_floats;
  int32_t* numbers = scratch.numbers + i * plan.row_floats;
  int64_t* starts = scratch.starts + i * (plan.spans + 1);
  const int64_t tile_rows = int64_t{plan.tile} * plan.chunks;  // in units of a chunk's width
  Vec largest = broadcast(-INFINITY);
  int64_t count = 0;
  for (int64_t span = 0, first = 0; span < plan.spans; span++) {
    starts[span] = count;
    for (int64_t tile = 0; tile < plan.span_tiles && first < length; tile++, first += plan.tile) {
      if (is_cut_off(plan, area_of(plan, query, query, first, plan.tile))) continue;
      const RowChoice choice = choice_of_row(plan, threshold, query, first);
      const auto list = [&](auto reaches) {
        return list_scores<decltype(reaches)::value>(choice, scores + first, plan.key_number, first, plan.tile,
                                                     static_cast<int32_t>(tile * tile_rows), scores, numbers, count,
                                                     largest);
      };
      count = choice.joins || choice.cuts ? list(std::true_type()) : list(std::false_type());
    }
  }
  starts[plan.spans] = count;
  return reduce_max(largest);
}

// Listed scores become weights, in place; their sum by lane.
static void weigh_list(const Plan& plan, float* scores, int64_t count, float largest, float* sums) {
  const Vec reference = broadcast(largest), exponent = broadcast(plan.exponent), floor = broadcast(plan.floor);
  Vec sum = zero();
  for (int64_t at = 0; at < count; at += kWidth) {
    const Mask listed = mask_of(first_lanes(count - at));
    const Vec weight = select(listed, exp2_scaled(sub(load(scores + at), reference), exponent, floor), zero());
    store(scores + at, weight);
    sum = add(sum, weight);
  }
  store(sums, sum);
}

// The keys of listed value rows, from the first of their span on: chunks of a tile lie behind one another, so that the
// rows of the next tile are counted on from there.
DYNATTN_INLINE Vec keys_of_numbers(const Plan& plan, const int32_t* numbers) {
  if (plan.chunks == 1) return load_any(reinterpret_cast<const float*>(numbers));
  const int32_t tile_rows = plan.tile * plan.chunks;
  alignas(64) int32_t keys[kWidth];
  for (int lane = 0; lane < kWidth; lane++) {
    keys[lane] = numbers[lane] / tile_rows * plan.tile + numbers[lane] % tile_rows;
  }
  return load(reinterpret_cast<const float*>(keys));
}

// Applies dropout to a row's listed weights. A dropped entry leaves the list, so that it touches no value.
static void drop_listed(const RowPlan& plan, const QueryBlock& block, const RowScratch& scratch, int64_t i,
                        const DropoutStream& stream) {
  float* weights = scratch.scores + i * plan.row_floats;
  int32_t* numbers = scratch.numbers + i * plan.row_floats;
  int64_t* starts = scratch.starts + i * (plan.spans + 1);
  const Vec factor = broadcast(plan.args->keep_factor);
  const Vec drop_below = broadcast_integer(static_cast<int32_t>(plan.args->drop_below));
  int64_t at = 0, count = 0;
  for (int64_t span = 0; span < plan.spans; span++) {
    const Vec first_key = broadcast_integer(static_cast<int32_t>(span * plan.span_tiles * plan.tile));
    const int64_t end = starts[span + 1];
    starts[span] = count;
    for (; at < end; at += smaller<int64_t>(kWidth, end - at)) {
      const Vec keys = add_integers(keys_of_numbers(plan, numbers + at), first_key);
      uint32_t left;
      draw<1>(stream, static_cast<uint32_t>(block.first + i), drop_below, &keys, &left);
      left &= first_lanes(end - at);
      const size_t bytes = static_cast<size_t>(__builtin_popcount(left)) * sizeof(float);
      alignas(64) float some[2][kWidth];  // only what is left may be written: the next span's entries may follow
      store(some[0], compress(left, mul(load_any(weights + at), factor)));
      store(some[1], compress(left, load_any(reinterpret_cast<const float*>(numbers + at))));
      memcpy(weights + count, some[0], bytes);
      memcpy(numbers + count, some[1], bytes);
      count += __builtin_popcount(left);
    }
  }
  starts[plan.spans] = count;
}

// What a row keeps.
static Threshold find_row(const RowPlan& plan, const QueryBlock& block, const RowScratch& scratch, int64_t i) {
  const NMForwardArgs& args = *plan.args;
  const RowStates& rows = block.scratch.rows;
  float* scores = scratch.scores + i * plan.row_floats;
  const int64_t keys = keys_of(plan, block.first + i), length = round_up(keys, plan.tile);
  const bool known = args.mask == nullptr && !block.careful;
  const int64_t allowed = known ? keys : length - count_below(scores, length, -FLT_MAX);
  const Threshold found = threshold_of_row(plan, block, i, scores, keys, allowed, scratch.room);
  const Threshold threshold = single_out(found, scores, 0, length);
  const int64_t row = first_row(block) + i;
  if (args.threshold != nullptr) {
    args.threshold[row] = found.score;
    args.last_tie[row] = found.last_tie;
  }
  if (plan.counts && allowed > 0) {
    rows.reference[i] = largest_of(scores, length);
    sum_dropped(plan, block.first + i, scores, length, threshold, rows.reference[i], rows.dropped + i * kWidth);
  }
  rows.allowed[i] = static_cast<int32_t>(allowed);
  return threshold;
}

// Step 2 for one row.
static void list_kept(const RowPlan& plan, const QueryBlock& block, const RowScratch& scratch, int64_t i) {
  const RowStates& rows = block.scratch.rows;
  const int64_t query = block.first + i, length = round_up(keys_of(plan, query), plan.tile);
  const float largest = list_row(plan, scratch, i, query, length, scratch.lines[i]);
  const int64_t count = scratch.starts[i * (plan.spans + 1) + plan.spans];
  rows.kept[i] = static_cast<int32_t>(count);
  if (count == 0) return;
  // What is dropped may be larger, by more than floats hold: the share of what is kept is then as good as 0. Of NaN or
  // infinity, which go on as the largest float, there is no share.
  if (plan.counts && plan.cut) {
    const float largest_of_all = rows.reference[i];
    const float growth = exp2f(smaller(kMostGrowth, (largest_of_all - largest) * plan.exponent));
    scale_row(rows.dropped + i * kWidth, kWidth, largest_of_all < FLT_MAX ? growth : NAN);
  }
  rows.reference[i] = largest;
  weigh_list(plan, scratch.scores + i * plan.row_floats, count, largest, rows.sum + i * kWidth);
}

// Whether most of a block's pairs are kept, where nothing asks for a list of them.
static bool keeps_most(const RowPlan& plan, const QueryBlock& block, const RowScratch& scratch) {
  const RowForwardArgs& rule = *plan.rule;
  const bool by_rank = rule.weight < 0.0f && rule.mass == 0.0f;
  if (block.careful || plan.window || plan.cut || rule.call.drop_below > 0 || by_rank) return false;
  int64_t kept = 0, allowed = 0;
  for (int64_t i = 0; i < block.count; i++) {
    const int64_t length = round_up(keys_of(plan, block.first + i), plan.tile);
    kept += count_kept(scratch.scores + i * plan.row_floats, length, scratch.lines[i]);
    allowed += length;
  }
  return static_cast<float>(kept) > kMost * static_cast<float>(allowed);
}

// Steps 2 and 3 of such a block.
static void attend_whole(const RowPlan& plan, const QueryBlock& block, const RowScratch& scratch) {
  const RowStates& rows = block.scratch.rows;
  const int64_t keys = keys_of(plan, block.first + block.count - 1), end = round_up(keys, plan.tile);
  for (int64_t i = 0; i < round_up(block.count, plan.rows); i++) {
    float* scores = scratch.scores + i * plan.row_floats;
    int64_t length = 0;
    if (i < block.count) {
      length = round_up(keys_of(plan, block.first + i), plan.tile);
      rows.kept[i] = static_cast<int32_t>(count_kept(scores, length, scratch.lines[i]));
      if (rows.kept[i] == 0) length = 0;
    }
    if (length > 0) {
      rows.reference[i] = weigh_in_place(plan, scores, length, scratch.lines[i], rows.sum + i * kWidth);
    }
    memset(scores + length, 0, static_cast<size_t>(end - length) * sizeof(float));
  }
  if (plan.rows == 1) return add_whole_rows<1>(block, scratch.scores, plan.row_floats, keys);
  add_whole_rows<kRows>(block, scratch.scores, plan.row_floats, keys);
}

// Step 3.
static void add_kept_values(const RowPlan& plan, const QueryBlock& block, const RowScratch& scratch) {
  const RowStates& rows = block.scratch.rows;
  const int64_t span_floats = plan.span_tiles * plan.tile * value_width(plan);
  for (int64_t span = 0; span < plan.spans; span++) {
    for (int chunk = 0; chunk < plan.chunks; chunk++) {
      const float* values = block.head.values + span * span_floats + int64_t{chunk} * plan.tile * plan.chunk * kWidth;
      for (int64_t i = 0; i < block.count; i++) {
        const int64_t* starts = scratch.starts + i * (plan.spans + 1) + span;
        const int64_t at = i * plan.row_floats + starts[0];
        if (starts[1] == starts[0]) continue;
        add_rows(plan.chunk, rows.out + i * rows.out_stride + chunk * plan.chunk * kWidth, values, scratch.scores + at,
                 scratch.numbers + at, static_cast<int>(starts[1] - starts[0]));
      }
    }
  }
}

static bool score_rows(const QueryBlock& block, float* scores, int64_t stride) {
  return block.plan.rows == 1 ? score_rows<1, kPanel>(block, scores, stride)
                              : score_rows<kRows, kPanel>(block, scores, stride);
}

static inline void run_row_query_block(const RowPlan& plan, const PackedHead& head, const RowScratch& scratch,
                                       int64_t batch, int64_t index, int64_t first) {
  QueryBlock block = open_query_block(plan, head, scratch.block, batch, index, first);
  if (!score_rows(block, scratch.scores, plan.row_floats)) {
    block.careful = true;
    score_rows(block, scratch.scores, plan.row_floats);
  }
  clear_rows(block);
  const NMForwardArgs& args = *plan.args;
  const DropoutStream stream = open_stream(args.seed, static_cast<uint32_t>(args.first_batch + batch),
                                           static_cast<uint32_t>(args.first_head + index));
  for (int64_t i = 0; i < block.count; i++) scratch.lines[i] = find_row(plan, block, scratch, i);
  if (keeps_most(plan, block, scratch)) {
    attend_whole(plan, block, scratch);
    return finish_rows(block);
  }
  for (int64_t i = 0; i < block.count; i++) {
    list_kept(plan, block, scratch, i);
    if (args.drop_below > 0) drop_listed(plan, block, scratch, i, stream);
  }
  add_kept_values(plan, block, scratch);
  finish_rows(block);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
