// N:M attention of one query block: its queries against all keys of their head, tile by tile.
//
// A tile is taken in two steps. First every band of rows gets its scores, its choice and its weights, with the tile
// of keys in the first-level cache; then every band's weights multiply the tile of values, which takes the keys'
// place there.
#pragma once

#include "common/bias.h"
#include "common/chunks.h"
#include "common/threshold.h"
#include "nm/choice.h"
#include "nm/dropout.h"
#include "nm/scores.h"
#include "nm/values.h"

namespace dynattn::DYNATTN_NAMESPACE {

// True where positions have a say in what is kept of these pairs.
static bool touched(const Plan& plan, const Area& area) {
  return (plan.window && meets(joined_reach(*plan.args), area)) || (!plan.confined && is_cut(plan, area));
}

// How many blocks of these columns queries [first, last] keep something of.
static KeptBlocks kept_blocks(const Plan& plan, const BlockColumns& columns, int64_t first, int64_t last,
                              int64_t first_key, int64_t keys) {
  const KeptBlocks kept = kept_blocks(columns, first, last);
  const bool joined = kept == KeptBlocks::kNone && plan.args->beyond_blocks != 0 &&
                      meets(joined_reach(*plan.args), area_of(plan, first, last, first_key, keys));
  return joined ? KeptBlocks::kSome : kept;
}

template <int kR, int kV, bool kBiased>
static void score(const QueryBlock& block, int64_t band, int64_t tile, const BandBias& bias, BandKind kind) {
  const Plan& plan = block.plan;
  const float* query = block.scratch.queries + band * kR * plan.args->head_dim;
  const float* key = block.head.keys + (tile - block.head.first_tile) * plan.tile * plan.args->head_dim;
  const ScoreTile to = {block.scratch.scores + band * kR * plan.tile, plan.tile,
                        block.scratch.choice + band * kR * (kTile / 2 / kWidth), bias.rows, bias.stride};
  if (kind == kChosenInRegisters) {
    score_band<kR, kV, kBiased, true>(plan, query, key, to);
  } else {
    score_band<kR, kV, kBiased, false>(plan, query, key, to);
  }
}

template <int kM>
static void weigh_groups(const QueryBlock& block, int64_t row, float* scores, const float* bias, int64_t first_key) {
  const Plan& plan = block.plan;
  const RowStates& rows = block.scratch.rows;
  const int64_t query = block.first + row;
  const ReachedKeys always = always_kept(plan, query, first_key);
  if (!plan.confined && is_cut(plan, area_of(plan, query, query, first_key, plan.tile))) {
    cut_row<kM>(plan, scores, bias, always, reached_keys(plan, cutting_reach(*plan.args), query, first_key));
  }
  if (block.careful) clean_row(plan, rows, row, scores, bias);
  choose_row<kM>(plan, rows, row, scores, always, block.careful || block.marked ? -1.0f : 0.0f);
}

static void weigh_by_position(const QueryBlock& block, int64_t row, float* scores, const float* bias,
                              int64_t first_key) {
  if (block.plan.m == 2) {
    weigh_groups<2>(block, row, scores, bias, first_key);
  } else if (block.plan.m == 4) {
    weigh_groups<4>(block, row, scores, bias, first_key);
  } else {
    weigh_groups<0>(block, row, scores, bias, first_key);
  }
}

// Computes the weights of a row that chose by its own scores, from the threshold that its forward found. Entries that
// are not kept become negative. A backward gives the reference and reads no sum, unless sums are what is asked for.
static void weigh_by_threshold(const QueryBlock& block, int64_t row, float* scores, const float* bias,
                               int64_t first_key) {
  const Plan& plan = block.plan;
  const NMForwardArgs& args = *plan.args;
  const int64_t at = first_row(block) + row;
  const RowStates& rows = block.scratch.rows;
  if (block.careful) clean_row(plan, rows, row, scores, bias);
  const Threshold found = row < block.count ? Threshold{args.threshold[at], args.last_tie[at]} : kKeepNothing;
  const Threshold threshold = single_out(found, scores, first_key, plan.tile);
  const RowChoice choice = choice_of_row(plan, threshold, block.first + row, first_key);
  const bool sums = plan.sums.sum != nullptr;
  if (sums) {
    Vec largest = broadcast(-INFINITY);
    for (int i = 0; i < plan.tile; i += kWidth) {
      const Vec x = load(scores + i);
      const uint32_t kept = kept_lanes(choice, x, first_key + i, load(plan.key_number + i));
      largest = max(largest, select(mask_of(kept), x, broadcast(-INFINITY)));
    }
    follow_maximum(plan, rows, row, largest);
  }
  const Vec reference = broadcast(rows.reference[row]);
  const Vec exponent = broadcast(plan.exponent), floor = broadcast(plan.floor), dropped = broadcast(-1.0f);
  Vec sum = load(rows.sum + row * kWidth);
  for (int i = 0; i < plan.tile; i += kWidth) {
    const Vec x = load(scores + i);
    const Mask kept = mask_of(kept_lanes(choice, x, first_key + i, load(plan.key_number + i)));
    const Vec weight = exp2_scaled(sub(x, reference), exponent, floor);
    if (sums) sum = add(sum, select(kept, weight, zero()));
    store(scores + i, select(kept, weight, dropped));
  }
  if (sums) store(rows.sum + row * kWidth, sum);
}

template <int kR>
static void weigh(const QueryBlock& block, int64_t band, int64_t tile, const BandBias& bias, BandKind kind) {
  const Plan& plan = block.plan;
  const RowStates& rows = block.scratch.rows;
  float* scores = block.scratch.scores + band * kR * plan.tile;
  if (kind == kChosenInRegisters) {
    weigh_rows<kTile / 2 / kWidth>(plan, rows, band * kR, kR, scores, kTile / 2);
  } else if (plan.args->threshold != nullptr) {
    for (int r = 0; r < kR; r++) {
      const float* row_bias = bias.rows == nullptr ? nullptr : bias.rows + r * bias.stride;
      weigh_by_threshold(block, band * kR + r, scores + r * plan.tile, row_bias, tile * plan.tile);
    }
  } else if (plan.dense && !plan.counts && !block.careful) {
    if (plan.tile == kTile) {
      weigh_rows<kTile / kWidth>(plan, rows, band * kR, kR, scores, kTile);
    } else {
      weigh_rows<kTileFine / kWidth>(plan, rows, band * kR, kR, scores, kTileFine);
    }
  } else {
    for (int r = 0; r < kR; r++) {
      const float* row_bias = bias.rows == nullptr ? nullptr : bias.rows + r * bias.stride;
      weigh_by_position(block, band * kR + r, scores + r * plan.tile, row_bias, tile * plan.tile);
    }
  }
}

// First step of a tile: weights of every band. Returns false where a bias asks for the careful variant.
template <int kR, int kV>
static bool weigh_tile(const QueryBlock& block, int64_t tile, bool* any) {
  const Plan& plan = block.plan;
  TileBias biases(block, tile);
  const int64_t first_key = biases.first_key, keys = biases.keys;
  const BlockColumns columns = block_columns(*plan.args, block.batch, block.index, first_key, keys);
  const bool positions = block.careful || plan.generic || plan.layout == Layout::kPositions;
  for (int64_t band = 0; band * kR < block.count; band++) {
    const int64_t first = block.first + band * kR;
    const int64_t last = smaller(first + kR, block.first + block.count) - 1;
    BandKind& kind = block.scratch.kinds[band];
    kind = kSkipped;
    if (allowed_keys(plan, last, first_key) == 0) continue;
    const Area area = area_of(plan, first, last, first_key, keys);
    if (is_cut_off(plan, area)) continue;
    const KeptBlocks kept = kept_blocks(plan, columns, first, last, first_key, keys);
    if (kept == KeptBlocks::kNone) continue;
    const BandBias bias = biases.of_band(first, last, kept == KeptBlocks::kSome ? &columns : nullptr);
    if (bias.unsafe && !block.careful) return false;
    if (!bias.any) continue;
    kind = positions || touched(plan, area) ? kByPosition : kChosenInRegisters;
    if (bias.rows != nullptr) {
      score<kR, kV, true>(block, band, tile, bias, kind);
    } else {
      score<kR, kV, false>(block, band, tile, bias, kind);
    }
    weigh<kR>(block, band, tile, bias, kind);
    *any = true;
  }
  return true;
}

// Second step: the weights of every band times the tile's values. kBits 0: the layout has no bands chosen in registers.
template <int kR, int kV, int kBits, int kChunk>
static void add_values(const QueryBlock& block, const float* values) {
  const Plan& plan = block.plan;
  const RowStates& rows = block.scratch.rows;
  for (int chunk = 0; chunk < plan.chunks; chunk++) {
    const float* value = values + int64_t{chunk} * plan.tile * kChunk * kWidth;
    for (int64_t band = 0; band * kR < block.count; band++) {
      float* out = rows.out + band * kR * rows.out_stride + chunk * kChunk * kWidth;
      const float* weights = block.scratch.scores + band * kR * plan.tile;
      const BandKind kind = block.scratch.kinds[band];
      if (kind == kChosenInRegisters) {
        const uint32_t* choice = block.scratch.choice + band * kR * (kTile / 2 / kWidth);
        if constexpr (kBits > 0) {
          if (plan.stride == 1) {
            sparse_band<kR, kBits, kChunk, false>(plan, out, rows.out_stride, weights, choice, value);
          } else {
            sparse_band<kR, kBits, kChunk, true>(plan, out, rows.out_stride, weights, choice, value);
          }
        }
      } else if (kind == kByPosition && block.careful) {
        for (int r = 0; r < kR; r++) careful_row(plan, out + r * rows.out_stride, weights + r * plan.tile, value);
      } else if (kind == kByPosition) {
        dense_band<kR, kV>(plan, out, rows.out_stride, weights, value);
      }
    }
  }
}

static const float* value_tile(const QueryBlock& block, int64_t tile) {
  const Plan& plan = block.plan;
  const bool partial = (tile + 1) * plan.tile > plan.args->kv_len;
  if (plan.value_in_place && partial) return block.head.value_tail;
  return block.head.values + tile * plan.tile * value_width(plan);
}

template <int kR, int kV, int kBits>
static void add_values(const QueryBlock& block, const float* values) {
  with_chunk(block.plan.chunk, [&](auto chunk) { add_values<kR, kV, kBits, decltype(chunk)::value>(block, values); });
}

// All tiles. Returns false where a bias asks for the careful variant.
template <int kR, int kV, int kBits>
static bool run_tiles(const QueryBlock& block) {
  const Plan& plan = block.plan;
  clear_rows(block);
  for (int64_t tile = 0; tile < plan.tiles; tile++) {
    if (allowed_keys(plan, block.first + block.count - 1, tile * plan.tile) == 0) break;
    bool any = false;
    if (!weigh_tile<kR, kV>(block, tile, &any)) return false;
    if (any && plan.args->drop_below > 0) {
      draw_tile(block, tile);
      drop_weights(block, block.careful ? -1.0f : 0.0f);  // nothing dropped may touch an infinite value
    }
    if (any) add_values<kR, kV, kBits>(block, value_tile(block, tile));
  }
  return true;
}

static bool run_tiles(const QueryBlock& block) {
  const bool single = block.plan.rows == 1;
  switch (block.plan.layout) {
    case Layout::kOneOfTwo:
      return single ? run_tiles<1, kPanel, 1>(block) : run_tiles<kRows, kPanel, 1>(block);
    case Layout::kTwoOfFour:
      return single ? run_tiles<1, kPanelWide, 2>(block) : run_tiles<kRowsWide, kPanelWide, 2>(block);
    case Layout::kPositions:
      break;
  }
  if (block.plan.rows == kRowsBlocks) return run_tiles<kRowsBlocks, kPanel, 0>(block);
  if (block.plan.rows == kRowsFine) return run_tiles<kRowsFine, 1, 0>(block);
  return single ? run_tiles<1, kPanel, 0>(block) : run_tiles<kRows, kPanel, 0>(block);
}

static inline void run_query_block(const Plan& plan, const PackedHead& head, const Scratch& scratch, int64_t batch,
                                   int64_t index, int64_t first) {
  QueryBlock block = open_query_block(plan, head, scratch, batch, index, first);
  if (!run_tiles(block)) {
    block.careful = true;
    run_tiles(block);
  }
  finish_rows(block);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
