// What a task of few queries computes: one range of keys, for one key head or for several together, tile by tile.
#pragma once

#include "common/arena.h"
#include "common/chunks.h"
#include "nm/forward.h"
#include "nm/pair_rows.h"
#include "nm/value_rows.h"

namespace dynattn::DYNATTN_NAMESPACE {

// A thread's memory.
struct FewScratch {
  float* queries;           // [head of the task][row][key_width], padded with zeros
  uint16_t* pair_queries;   // the same in bfloat16, where products are of pairs
  float* scores;            // [row][tile], then weights; negative where not kept
  float* bias;              // [row][tile]
  const float** bias_of;    // [row]: its bias, or NULL
  float* block_bias;        // [tile], by position: what a row's blocks forbid
  const char** key_rows;    // [2 · tile]: where the keys of a tile and of the next lie, for the first head of the task
  const char** value_rows;  // [2 · tile]: likewise
  RowStates rows;           // [head of the task][row], unless ranges have states of their own
  ValueScratch values;
#ifdef DYNATTN_PAIRS
  PairScratch pairs;
#endif
};

// A call of few queries.
struct Few {
  const Plan* plan;
  int64_t* finished;                  // [heads of a task] ranges done
  char* states;                       // [head][range], where a head has several
  int64_t states_bytes;
  int64_t first_task;                 // among those of all calls
  int64_t heads, heads_per_kv, rows;  // key heads, query heads of each, query rows of each
  int64_t together;                   // key heads of a task, of one sample
  int64_t ranges, range_tiles;
  int64_t key_width;                    // head_dim rounded up to whole vectors
  bool keys_in_place, values_in_place;  // float32 rows of whole vectors
  bool pairs;                           // products are of pairs of bfloat16 numbers
  bool most_values;                     // nearly all value rows of a tile are read
};

static RowStates rows_from(RowStates rows, int64_t row) {
  rows.reference += row;
  rows.ceiling += row;
  rows.sum += row * kWidth;
  rows.dropped += row * kWidth;
  rows.out += row * rows.out_stride;
  rows.kept += row;
  rows.allowed += row;
  rows.poisoned += row;
  return rows;
}

// One query head of a task, as a query block.
struct FewHead {
  PackedHead packed = {};
  Scratch scratch = {};
  QueryBlock block;

  FewHead(const Few& few, const FewScratch& own, const RowStates& rows, int64_t head, int64_t member)
      : block{*few.plan, packed, scratch, 0, 0, 0, few.plan->args->q_len, true, true} {
    const NMForwardArgs& args = *few.plan->args;
    scratch.rows = rows_from(rows, member * args.q_len);
    scratch.block_bias = own.block_bias;
    block.batch = head / args.kv_heads;
    block.index = head % args.kv_heads * few.heads_per_kv + member;
  }
};

static FewScratch lay_few_scratch(const Few& few, Arena& arena) {
  const Plan& plan = *few.plan;
  FewScratch s;
  s.queries = arena.take<float>(few.together * few.rows * few.key_width);
  s.pair_queries = arena.take<uint16_t>(few.pairs ? few.together * few.rows * few.key_width : 0);
  s.scores = arena.take<float>(few.rows * plan.tile);
  s.bias = arena.take<float>(few.rows * plan.tile);
  s.bias_of = arena.take<const float*>(few.rows);
  s.block_bias = arena.take<float>(plan.args->blocks != nullptr ? plan.tile : 0);
  s.key_rows = arena.take<const char*>(2 * plan.tile);
  s.value_rows = arena.take<const char*>(2 * plan.tile);
  s.values = lay_value_scratch(plan, few.values_in_place, arena);
  s.rows = lay_rows(plan, few.ranges > 1 ? 0 : few.together * few.rows, arena);
#ifdef DYNATTN_PAIRS
  if (few.pairs) s.pairs = lay_pair_scratch(plan, arena);
#endif
  return s;
}

// The rows of a head, in one range of keys.
static RowStates head_rows(const Few& few, const FewScratch& scratch, int64_t head, int64_t range) {
  if (few.ranges == 1) return rows_from(scratch.rows, head % few.together * few.rows);
  const int64_t at = (head * few.ranges + range) * few.states_bytes;
  Arena arena = {reinterpret_cast<uintptr_t>(few.states + at), 0};
  return lay_rows(*few.plan, few.rows, arena);
}

// The queries of one of a task's heads. A negative scale turns their sign, as it turns the keys' where they are packed.
static void copy_queries(const Few& few, const FewScratch& scratch, int64_t first_head, int64_t number) {
  const NMForwardArgs& args = *few.plan->args;
  const int64_t head = first_head + number, own = number * few.rows * few.key_width;
  const int64_t* stride = args.query_strides;
  float* const to = scratch.queries + own;
  for (int64_t r = 0; r < few.rows; r++) {
    const int64_t query_head = head % args.kv_heads * few.heads_per_kv + r / args.q_len;
    const int64_t at = head / args.kv_heads * stride[0] + query_head * stride[1] + r % args.q_len * stride[2];
    copy_row(to + r * few.key_width, element(args.query, at, args.dtype), args.dtype, args.head_dim, few.key_width);
    scale_row(to + r * few.key_width, few.key_width, few.plan->fold);
  }
  if (!few.pairs) return;
  from_floats(reinterpret_cast<char*>(scratch.pair_queries + own), to, args.dtype, few.rows * few.key_width);
}

// The rows of a task's head in a tile, of keys or of values.
static TileRows tile_rows(const Few& few, const char* const* rows, const int64_t strides[3], int64_t head) {
  const Plan& plan = *few.plan;
  const int64_t apart = strides[1] * element_size(plan.args->dtype), shift = head * apart;
  const bool last = head + 1 == few.together;
  const int64_t ahead = plan.m * plan.stride <= 2 ? smaller<int64_t>(kKeysAhead, plan.tile) : plan.tile;
  return {rows, last ? rows + plan.tile : rows, shift, last ? 0 : shift + apart, plan.tile, ahead};
}

// Products of all rows of a task's head with one tile of keys, by position. Keys that follow are asked for: of this
// head, then of the next one, and behind the last head those of the next tile.
static void score_in_place(const Few& few, const FewScratch& scratch, int64_t tile, int64_t head) {
  const Plan& plan = *few.plan;
  const NMForwardArgs& args = *plan.args;
  alignas(64) float room[kWidth][kMaxHeadDim];
  const int64_t size = element_size(args.dtype);
  const TileRows rows = tile_rows(few, scratch.key_rows, args.key_strides, head);
  const float* const own_queries = scratch.queries + head * few.rows * few.key_width;
  for (int position = 0; position < plan.tile; position += kWidth) {
    const float* keys[kWidth];
    for (int lane = 0; lane < kWidth; lane++) {
      const int64_t key = plan.key_of[position + lane];
      keys[lane] = kZeros;
      if (tile * plan.tile + key >= args.kv_len) continue;
      const char* row = rows.row[key] + rows.shift;
      prefetch_far(TileRows::soon(rows, position + lane), args.head_dim * size);
      keys[lane] = few.keys_in_place ? reinterpret_cast<const float*>(row) : room[lane];
      if (!few.keys_in_place) copy_row(room[lane], row, args.dtype, args.head_dim, few.key_width);
    }
    for (int64_t r = 0; r < few.rows; r += kRowsAtOnce) {
      const float* queries = own_queries + r * few.key_width;
      float* scores = scratch.scores + r * plan.tile + position;
      with_rows(smaller(kRowsAtOnce, few.rows - r), [&](auto some) {
        dot_rows<decltype(some)::value>(queries, few.key_width, keys, scores, plan.tile);
      });
    }
  }
}

// The bias of every row over a tile; neighbouring rows that see the same share one. Returns false where nothing is
// allowed.
static bool make_few_biases(const Few& few, const FewScratch& scratch, const RowStates& rows, int64_t head,
                            int64_t first_key) {
  const Plan& plan = *few.plan;
  const NMForwardArgs& args = *plan.args;
  const int64_t q_len = args.q_len;
  const int64_t keys = smaller<int64_t>(plan.tile, plan.args->kv_len - first_key);
  const char* last_mask = nullptr;
  const uint8_t* last_blocks = nullptr;
  const uint8_t* laid = nullptr;
  int64_t last_allowed = -1, last_query = -1;
  bool any = false;
  for (int64_t r = 0; r < few.rows; r++) {
    const FewHead at(few, scratch, rows, head, r / q_len);
    const int64_t query = r % q_len, allowed = allowed_keys(plan, query, first_key);
    const char* mask = mask_entries(at.block, query, first_key);
    const BlockColumns columns = block_columns(args, at.block.batch, at.block.index, first_key, keys);
    const uint8_t* blocks = columns.kept == nullptr ? nullptr : block_row(columns, query);
    const bool placed_alike = (!plan.confined && args.beyond_blocks == 0) || query == last_query;
    if (r > 0 && mask == last_mask && allowed == last_allowed && blocks == last_blocks && placed_alike) {
      scratch.bias_of[r] = scratch.bias_of[r - 1];
    } else {
      float* row = scratch.bias + r * plan.tile;
      const bool dropped = kept_blocks(columns, query, query) != KeptBlocks::kAll;
      const bool near = !plan.confined || !is_cut(plan, area_of(plan, query, query, first_key, keys));
      const bool whole = mask == nullptr && allowed == plan.tile && !dropped && near;
      const BiasSummary all = whole
                                  ? BiasSummary{true, true, false}
                                  : make_row_bias(at.block, query, first_key, dropped ? &columns : nullptr, laid, row);
      scratch.bias_of[r] = as_band_bias(all, plan, row, 0).rows;
      any |= all.any;
    }
    last_mask = mask, last_allowed = allowed, last_blocks = blocks, last_query = query;
  }
  return any;
}

DYNATTN_INLINE void add_bias(const Plan& plan, float* scores, const float* bias) {
  const Vec multiplier = broadcast(plan.multiplier);
  for (int i = 0; i < plan.tile; i += kWidth) store(scores + i, fmadd(load(scores + i), multiplier, load(bias + i)));
}

// Choice and weights of every row of a task's head over one tile whose scores are made.
static void weigh_few(const Few& few, const FewScratch& scratch, const RowStates& rows, int64_t tile, int64_t head) {
  const Plan& plan = *few.plan;
  const int64_t q_len = plan.args->q_len;
  bool all = plan.dense && !plan.counts && plan.tile == kTile;  // every row keeps every key
  for (int64_t r = 0; all && r < few.rows; r++) all = scratch.bias_of[r] == nullptr;
  if (all) {
    for (int64_t r = 0; r < few.rows; r++) clean_row(plan, rows, r, scratch.scores + r * plan.tile, nullptr);
    return weigh_rows<kTile / kWidth>(plan, rows, 0, static_cast<int>(few.rows), scratch.scores, plan.tile);
  }
  for (int64_t member = 0; member < few.heads_per_kv; member++) {
    const FewHead query_head(few, scratch, rows, head, member);
    for (int64_t i = 0; i < q_len; i++) {
      const int64_t r = member * q_len + i;
      float* scores = scratch.scores + r * plan.tile;
      const float* bias = scratch.bias_of[r];
      if (bias != nullptr) add_bias(plan, scores, bias);
      weigh_by_position(query_head.block, i, scores, bias, tile * plan.tile);
    }
  }
}

// Whether rows take all keys of a tile, in the order of positions, since they keep nearly all.
static bool takes_whole_tile(const Few& few, int64_t tile) {
  return few.most_values && (tile + 1) * few.plan->tile <= few.plan->args->kv_len;
}

// Adds the values of one tile that the rows of a task's head keep.
static void add_few(const Few& few, const FewScratch& scratch, const RowStates& rows, int64_t tile, int64_t head) {
  const Plan& plan = *few.plan;
  const bool whole = takes_whole_tile(few, tile);
  TileRows values = tile_rows(few, scratch.value_rows, plan.args->value_strides, head);
  if (!few.values_in_place) values = converted(plan, scratch.scores, few.rows, values, whole, scratch.values);
  for (int64_t r = 0; r < few.rows; r += kRowsAtOnce) {
    const bool asks = few.values_in_place && r == 0;
    with_rows(smaller(kRowsAtOnce, few.rows - r), [&](auto some) {
      add_row_values<decltype(some)::value>(plan, scratch.scores + r * plan.tile, rows.out + r * rows.out_stride,
                                            rows.out_stride, values, whole, asks, scratch.values);
    });
  }
}

#ifdef DYNATTN_PAIRS
// score_in_place() and add_few() by products of pairs.
static void score_pairs(const Few& few, const FewScratch& scratch, int64_t tile, int64_t head) {
  const Plan& plan = *few.plan;
  const NMForwardArgs& args = *plan.args;
  const TileRows rows = tile_rows(few, scratch.key_rows, args.key_strides, head);
  const int64_t left = args.kv_len - tile * plan.tile;
  const uint16_t* const queries = scratch.pair_queries + head * few.rows * few.key_width;
  for (int position = 0; position < plan.tile; position += kWidth) {
    const uint16_t* keys[kWidth];
    for (int lane = 0; lane < kWidth; lane++) {
      const int key = plan.key_of[position + lane];
      const char* const zeros = reinterpret_cast<const char*>(kZeros);
      keys[lane] = reinterpret_cast<const uint16_t*>(key < left ? rows.row[key] + rows.shift : zeros);
      prefetch_far(TileRows::soon(rows, position + lane), args.head_dim * 2);
    }
    dot_pairs(queries, few.rows, few.key_width, keys, scratch.scores + position, plan.tile);
  }
}

static void add_pairs(const Few& few, const FewScratch& scratch, const RowStates& rows, int64_t tile, int64_t head) {
  const Plan& plan = *few.plan;
  const TileRows values = tile_rows(few, scratch.value_rows, plan.args->value_strides, head);
  const bool whole = takes_whole_tile(few, tile);
  add_pair_values(plan, scratch.scores, few.rows, rows.out, rows.out_stride, values, whole, scratch.pairs);
}
#endif

// Where the rows of a tile and of the next one lie, for the head whose row 0 is at `head`. Those of the next one are
// touched, run by run: where pages lie in random order, to find out where a page is in memory takes longer than to read
// from it, and is then done while this tile is computed.
static void list_rows(const Plan& plan, const char* head, const int64_t strides[3], int64_t tile, const char** rows) {
  RowPlaces places;
  find_rows(plan, head, strides, tile * plan.tile, places);
  const int64_t count = int64_t{2} * plan.tile;
  for (int64_t key = 0, at = places.ahead; key < count;) {
    const char* const run = places.runs[at / kRunKeys];
    const int64_t first = at % kRunKeys, some = smaller(count - key, kRunKeys - first);
    if (key >= plan.tile) __builtin_prefetch(run);
    for (int64_t i = 0; i < some; i++) rows[key + i] = run + (first + i) * places.stride;
    key += some, at += some;
  }
}

static inline void run_range(const Few& few, const FewScratch& scratch, int64_t first_head, int64_t range) {
  const Plan& plan = *few.plan;
  const NMForwardArgs& args = *plan.args;
  for (int64_t i = 0; i < few.together; i++) {
    FewHead all(few, scratch, head_rows(few, scratch, first_head + i, range), first_head + i, 0);
    all.block.count = few.rows;
    clear_rows(all.block);
    copy_queries(few, scratch, first_head, i);
  }
  const char* const keys = kv_head(args, args.key, args.key_strides, first_head);
  const char* const values = kv_head(args, args.value, args.value_strides, first_head);
  const int64_t last = smaller((range + 1) * few.range_tiles, plan.tiles);
  for (int64_t tile = range * few.range_tiles; tile < last; tile++) {
    if (allowed_keys(plan, args.q_len - 1, tile * plan.tile) == 0) break;
    if (is_cut_off(plan, area_of(plan, 0, args.q_len - 1, tile * plan.tile, plan.tile))) continue;
    list_rows(plan, keys, args.key_strides, tile, scratch.key_rows);
    list_rows(plan, values, args.value_strides, tile, scratch.value_rows);
    for (int64_t i = 0; i < few.together; i++) {
      const RowStates rows = head_rows(few, scratch, first_head + i, range);
      if (!make_few_biases(few, scratch, rows, first_head + i, tile * plan.tile)) continue;
#ifdef DYNATTN_PAIRS
      if (few.pairs) {
        score_pairs(few, scratch, tile, i);
        weigh_few(few, scratch, rows, tile, first_head + i);
        add_pairs(few, scratch, rows, tile, i);
        continue;
      }
#endif
      score_in_place(few, scratch, tile, i);
      weigh_few(few, scratch, rows, tile, first_head + i);
      add_few(few, scratch, rows, tile, i);
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
