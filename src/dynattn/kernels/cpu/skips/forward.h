// Dense attention of one query block that skips what its own scores show to be small. All scores are computed, or those
// of given blocks. Of a band of rows and a run of keys, weights and values are left out where the largest score of every
// row lies a margin below the largest that the row has met so far, this run and those before it. A run is open where the
// given blocks keep it; the others are not read.
#pragma once

#include "nm/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kSkipRuns = kTile / DYNATTN_SKIP_KEYS;  // of a tile
constexpr uint32_t kAllRuns = (uint32_t{1} << kSkipRuns) - 1;

struct SkipPlan : Plan {
  const SkipForwardArgs* rule;
  float margin;  // in the unit of the kernel's scores
};

static void make_skip_plan(SkipPlan& plan, const SkipForwardArgs& rule) {
  make_plan(plan, rule.call, {nullptr, 0}, true);
  plan.rule = &rule;
  plan.margin = rule.margin * kLog2e / plan.exponent;
}

// A thread's memory for one query block.
struct SkipScratch {
  Scratch block;
  float* most;     // [row] the largest score so far
  uint32_t* kept;  // [band] a bit for each run of the tile
};

static SkipScratch lay_skip_scratch(const SkipPlan& plan, Arena& arena) {
  SkipScratch s;
  s.block = lay_scratch(plan, arena);
  s.most = arena.take<float>(plan.query_block);
  s.kept = arena.take<uint32_t>(plan.query_block);
  return s;
}

// The open runs of a tile for the band of a query, a bit for each. No block ends within a band or a run.
static uint32_t open_runs(const BlockColumns& columns, int64_t query, int64_t first_key) {
  if (columns.kept == nullptr) return kAllRuns;
  const uint8_t* row = block_row(columns, query);
  if (columns.count == 1) return row[0] != 0 ? kAllRuns : 0;
  uint32_t open = 0;
  for (int run = 0; run < kSkipRuns; run++) {
    const int64_t column = (first_key % columns.size + run * DYNATTN_SKIP_KEYS) / columns.size;
    if (column < columns.count && row[column] != 0) open |= uint32_t{1} << run;
  }
  return open;
}

// Rows of a band whose products are made at once: as many as leave registers for two vectors beside each other. With one
// vector, all rows would fit, and each of their elements be loaded twice as often: a fifth of the time.
template <int kR>
constexpr int kAtOnce = kR > kRowsBlocks ? kRowsBlocks : kR;

// Scores of a band in the panels that hold an open run.
template <int kR, int kV, bool kBiased>
static void score_open(const QueryBlock& block, int64_t band, int64_t tile, const BandBias& bias, uint32_t open) {
  constexpr int kPanelKeys = kV * kWidth;
  constexpr uint32_t kPanelRuns = kPanelKeys > DYNATTN_SKIP_KEYS ? (1u << kPanelKeys / DYNATTN_SKIP_KEYS) - 1 : 1;
  const Plan& plan = block.plan;
  const int64_t head_dim = plan.args->head_dim;
  const Vec multiplier = broadcast(plan.multiplier);
  const float* query = block.scratch.queries + band * kR * head_dim;
  const float* tile_keys = block.head.keys + (tile - block.head.first_tile) * kTile * head_dim;
  float* scores = block.scratch.scores + band * kR * kTile;
  for (int first_key = 0; first_key < kTile; first_key += kPanelKeys) {
    if ((open & kPanelRuns << first_key / DYNATTN_SKIP_KEYS) == 0) continue;
    for (int first = 0; first < kR; first += kAtOnce<kR>) {
      Vec acc[kAtOnce<kR>][kV];
      multiply<kAtOnce<kR>, kV, kR>(query + first, tile_keys + first_key * head_dim, head_dim, acc);
#pragma GCC unroll 16
      for (int r = 0; r < kAtOnce<kR>; r++) {
        for (int v = 0; v < kV; v++) {
          const int at = first_key + v * kWidth;
          if (kBiased) {
            acc[r][v] = fmadd(acc[r][v], multiplier, load(bias.rows + (first + r) * bias.stride + at));
          }
          store(scores + (first + r) * kTile + at, acc[r][v]);
        }
      }
    }
  }
}

// Makes kR rows of a tile forbidden but for some runs.
template <int kR>
static void forbid_others(float* scores, uint32_t runs) {
  for (int run = 0; run < kSkipRuns; run++) {
    if (runs >> run & 1) continue;
    float* first = scores + run * DYNATTN_SKIP_KEYS;
    for (int r = 0; r < kR; r++) {
      for (int i = 0; i < DYNATTN_SKIP_KEYS; i += kWidth) store(first + r * kTile + i, broadcast(-INFINITY));
    }
  }
}

// The open runs of a tile that some of `count` rows ask for, a bit for each. Raises the rows' largest scores.
static uint32_t asked_runs(const float* scores, int64_t count, float margin, float* most, uint32_t open) {
  const Vec forbidden = broadcast(-INFINITY);
  uint32_t asked = 0;
  for (int run = 0; run < kSkipRuns; run++) {
    if (!(open >> run & 1)) continue;
    for (int64_t r = 0; r < count; r++) {
      const float* at = scores + r * kTile + run * DYNATTN_SKIP_KEYS;
      Vec largest = load(at);
#pragma GCC unroll 4
      for (int i = kWidth; i < DYNATTN_SKIP_KEYS; i += kWidth) largest = max(largest, load(at + i));
      // the difference is exact where scores are large and near each other; most - margin would not be
      const uint32_t below = bits(greater(sub(broadcast(most[r]), largest), broadcast(margin)));
      if ((bits(greater(largest, forbidden)) & ~below) != 0) asked |= uint32_t{1} << run;
      if (bits(greater(largest, broadcast(most[r]))) != 0) most[r] = reduce_max(largest);
    }
  }
  return asked;
}

// Writes down which runs of a tile a band keeps.
static void note_runs(const QueryBlock& block, const SkipPlan& plan, int64_t band, int64_t tile, uint32_t kept) {
  if (plan.rule->kept == nullptr) return;
  const NMForwardArgs& args = *plan.args;
  const int64_t rows = ceil_div(args.q_len, DYNATTN_SKIP_QUERIES), columns = ceil_div(args.kv_len, DYNATTN_SKIP_KEYS);
  const int64_t row = block.first / DYNATTN_SKIP_QUERIES + band;
  uint8_t* to = plan.rule->kept + ((block.batch * args.heads + block.index) * rows + row) * columns;
  for (int64_t run = 0; run < kSkipRuns && tile * kSkipRuns + run < columns; run++) {
    to[tile * kSkipRuns + run] = kept >> run & 1;
  }
}

// `most` are the rows' largest scores, which lie in kept runs: all runs of a tile have to be weighed against the same.
template <int kR>
static void weigh_runs(const QueryBlock& block, int64_t band, int64_t tile, const BandBias& bias, const float* most,
                       uint32_t kept) {
  const Plan& plan = block.plan;
  for (int64_t r = 0; r < smaller<int64_t>(kR, block.count - band * kR); r++) {
    follow_maximum(plan, block.scratch.rows, band * kR + r, broadcast(most[r]));
  }
  float* scores = block.scratch.scores + band * kR * kTile;
  if (block.careful) {
    forbid_others<kR>(scores, kept);
    return weigh<kR>(block, band, tile, bias, kByPosition);
  }
  for (int run = 0; run < kSkipRuns; run++) {
    float* first = scores + run * DYNATTN_SKIP_KEYS;
    if (kept >> run & 1) {
      weigh_rows<DYNATTN_SKIP_KEYS / kWidth>(plan, block.scratch.rows, band * kR, kR, first, kTile);
    }
  }
}

// First step of a tile, as weigh_tile() has it: what is asked for of every band, and its weights.
template <int kR, int kV>
static bool weigh_asked(const QueryBlock& block, const SkipPlan& plan, const SkipScratch& scratch, int64_t tile,
                        bool* any) {
  TileBias biases(block, tile);
  const BlockColumns columns = block_columns(*plan.args, block.batch, block.index, biases.first_key, biases.keys);
  for (int64_t band = 0; band * kR < block.count; band++) {
    const int64_t first = block.first + band * kR, count = smaller<int64_t>(kR, block.count - band * kR);
    BandKind& kind = block.scratch.kinds[band];
    kind = kSkipped;
    const uint32_t open = open_runs(columns, first, biases.first_key);
    if (open == 0 || allowed_keys(plan, first + count - 1, biases.first_key) == 0) continue;
    const BandBias bias = biases.of_band(first, first + count - 1, nullptr);
    if (bias.unsafe && !block.careful) return false;
    uint32_t& kept = scratch.kept[band];
    kept = 0;
    float* scores = block.scratch.scores + band * kR * kTile;
    if (bias.any) {
      if (bias.rows != nullptr) {
        score_open<kR, kV, true>(block, band, tile, bias, open);
      } else {
        score_open<kR, kV, false>(block, band, tile, bias, open);
      }
      if (block.careful) forbid_others<kR>(scores, open);
      for (int64_t r = 0; block.careful && r < kR; r++) {
        const float* row_bias = bias.rows == nullptr ? nullptr : bias.rows + r * bias.stride;
        clean_row(plan, block.scratch.rows, band * kR + r, scores + r * kTile, row_bias);
      }
      kept = asked_runs(scores, count, plan.margin, scratch.most + band * kR, open);
    }
    note_runs(block, plan, band, tile, kept);
    if (kept == 0) continue;
    kind = kByPosition;
    weigh_runs<kR>(block, band, tile, bias, scratch.most + band * kR, kept);
    *any = true;
  }
  return true;
}

// kR rows × kC vectors of the output over the kept runs of a tile.
template <int kR, int kC>
DYNATTN_INLINE void kept_columns(const Plan& plan, float* out, int64_t out_stride, const float* weights,
                                 const float* value, uint32_t kept) {
  Vec acc[kR][kC];
  load_columns<kR, kC>(out, out_stride, acc);
  for (; kept != 0; kept &= kept - 1) {
    const int first = __builtin_ctz(kept) * DYNATTN_SKIP_KEYS;
    add_positions<kR, kC>(plan, weights, value, first, first + DYNATTN_SKIP_KEYS, acc);
  }
  store_columns<kR, kC>(out, out_stride, acc);
}

// All vectors of a piece of the output, of kR rows.
template <int kR, int kV>
static void kept_band(const Plan& plan, float* out, int64_t out_stride, const float* weights, const float* value,
                      uint32_t kept) {
  int c = 0;
  for (; c + kV <= plan.chunk; c += kV) {
    kept_columns<kR, kV>(plan, out + c * kWidth, out_stride, weights, value + c * kWidth, kept);
  }
  if (c < plan.chunk) kept_columns<kR, 1>(plan, out + c * kWidth, out_stride, weights, value + c * kWidth, kept);
}

// Second step: weights times values.
template <int kR, int kV>
static void add_kept(const QueryBlock& block, const uint32_t* kept, const float* values) {
  const Plan& plan = block.plan;
  const RowStates& rows = block.scratch.rows;
  for (int chunk = 0; chunk < plan.chunks; chunk++) {
    const float* value = values + int64_t{chunk} * kTile * plan.chunk * kWidth;
    for (int64_t band = 0; band * kR < block.count; band++) {
      if (block.scratch.kinds[band] == kSkipped) continue;
      float* out = rows.out + band * kR * rows.out_stride + int64_t{chunk} * plan.chunk * kWidth;
      const float* weights = block.scratch.scores + band * kR * kTile;
      if (block.careful) {
        for (int r = 0; r < kR; r++) careful_row(plan, out + r * rows.out_stride, weights + r * kTile, value);
        continue;
      }
      for (int r = 0; r < kR; r += kAtOnce<kR>) {
        kept_band<kAtOnce<kR>, kV>(plan, out + r * rows.out_stride, rows.out_stride, weights + r * kTile, value,
                                   kept[band]);
      }
    }
  }
}

// All tiles. Returns false where a bias asks for the careful variant.
template <int kR, int kV>
static bool run_skip_tiles(const QueryBlock& block, const SkipPlan& plan, const SkipScratch& scratch) {
  static_assert(kV <= 2, "one column is left at most");
  clear_rows(block);
  for (int64_t i = 0; i < block.count; i++) scratch.most[i] = -INFINITY;
  for (int64_t tile = 0; tile < plan.tiles; tile++) {
    if (allowed_keys(plan, block.first + block.count - 1, tile * kTile) == 0) break;
    bool any = false;
    if (!weigh_asked<kR, kV>(block, plan, scratch, tile, &any)) return false;
    if (!any) continue;
    if (plan.args->drop_below > 0) {
      draw_tile(block, tile);
      drop_weights(block, block.careful ? -1.0f : 0.0f);  // nothing dropped may touch an infinite value
    }
    add_kept<kR, kV>(block, scratch.kept, value_tile(block, tile));
  }
  return true;
}

static bool run_skip_tiles(const QueryBlock& block, const SkipPlan& plan, const SkipScratch& scratch) {
  if (plan.rows == 1) return run_skip_tiles<1, kPanel>(block, plan, scratch);
  return run_skip_tiles<DYNATTN_SKIP_QUERIES, kPanel>(block, plan, scratch);
}

static inline void run_skip_query_block(const SkipPlan& plan, const PackedHead& head, const SkipScratch& scratch,
                                        int64_t batch, int64_t index, int64_t first) {
  QueryBlock block = open_query_block(plan, head, scratch.block, batch, index, first);
  if (!run_skip_tiles(block, plan, scratch)) {
    block.careful = true;
    run_skip_tiles(block, plan, scratch);
  }
  finish_rows(block);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
