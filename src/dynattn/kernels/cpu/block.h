// One task: a block of queries of one head against all its keys, tile by tile.
//
// A tile is taken in two steps. First every group of rows gets its scores, its choice and its weights, with the tile
// of keys in the first-level cache; then every group's weights multiply the tile of values, which takes the keys'
// place there.
#pragma once

#include "cells.h"
#include "cut.h"
#include "dropout.h"
#include "pack.h"
#include "scores.h"
#include "softmax.h"
#include "values.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct GroupBias {
  const float* rows;  // NULL: nothing to add
  int64_t stride;
  bool any, unsafe;
};

DYNATTN_INLINE bool has_shared_mask(const NMForwardArgs& args) {
  return args.mask == nullptr || args.mask_strides[2] == 0;
}

// How many of the tile's keys causality and the end of the keys leave to a query.
DYNATTN_INLINE int64_t allowed_keys(const Plan& plan, int64_t query, int64_t first_key) {
  int64_t end = plan.args->kv_len;
  if (plan.args->causal) end = smaller(end, query + plan.offset + 1);
  return larger<int64_t>(0, smaller<int64_t>(plan.tile, end - first_key));
}

static const char* mask_entries(const Block& block, int64_t query, int64_t key) {
  const NMForwardArgs& args = *block.plan.args;
  if (args.mask == nullptr) return nullptr;
  const int64_t* stride = args.mask_strides;
  const int64_t index = block.batch * stride[0] + block.index * stride[1] + query * stride[2] + key * stride[3];
  return element(args.mask, index, args.mask_dtype);
}

static GroupBias summarize(const BiasSummary& all, const Plan& plan, const float* rows, int64_t stride) {
  const bool needed = !all.neutral || plan.multiplier != 1.0f;
  return {needed ? rows : nullptr, stride, all.any, all.unsafe};
}

// The bias of rows that all see the same: made once a tile.
static GroupBias make_shared_bias(const Block& block, int64_t first_key) {
  const Plan& plan = block.plan;
  const int64_t allowed = smaller<int64_t>(plan.tile, plan.args->kv_len - first_key);
  const char* mask = mask_entries(block, block.first, first_key);
  return summarize(bias_row(plan, mask, allowed, block.scratch.shared_bias), plan, block.scratch.shared_bias, 0);
}

// The bias of rows [first, last]; rows of padding repeat the last. `cells`: NULL where all of them are kept.
static GroupBias make_group_bias(const Block& block, int64_t first, int64_t last, int64_t first_key,
                                 const KeyCells* cells) {
  const Plan& plan = block.plan;
  BiasSummary all = {false, true, false};
  const uint8_t* laid = nullptr;
  for (int64_t r = 0; r < plan.rows; r++) {
    const int64_t query = smaller(first + r, last);
    const int64_t allowed = allowed_keys(plan, query, first_key);
    float* bias = block.scratch.bias + r * plan.tile;
    BiasSummary row = bias_row(plan, mask_entries(block, query, first_key), allowed, bias);
    if (cells != nullptr) {
      const uint8_t* own = cells_of(*cells, query);
      if (own != laid) lay_cells(plan, *cells, own, first_key, block.scratch.cells);
      laid = own;
      row = forbid_cells(plan, row, block.scratch.cells, bias);
    }
    all = {all.any || row.any, all.neutral && row.neutral, all.unsafe || row.unsafe};
  }
  return summarize(all, plan, block.scratch.bias, plan.tile);
}

// True where a window or the sinks keep entries of these rows in this tile.
static bool touched(const Plan& plan, int64_t first, int64_t last, int64_t first_key, int64_t keys) {
  if (!plan.window) return false;
  const int64_t window = plan.args->window;
  const bool band =
      window > 0 && first + plan.offset - window < first_key + keys - 1 && last + plan.offset + window > first_key;
  return first_key < plan.args->sinks || band;
}

template <int kR, int kV, bool kBiased>
static void score(const Block& block, int64_t group, int64_t tile, const GroupBias& bias, GroupKind kind) {
  const Plan& plan = block.plan;
  const float* query = block.scratch.queries + group * kR * plan.args->head_dim;
  const float* key = block.head.keys + (tile - block.head.first_tile) * plan.tile * plan.args->head_dim;
  const ScoreTile to = {block.scratch.scores + group * kR * plan.tile,
                        block.scratch.choice + group * kR * (kTile / 2 / kWidth), bias.rows, bias.stride};
  if (kind == kChosenInRegisters) {
    score_group<kR, kV, kBiased, true>(plan, query, key, to);
  } else {
    score_group<kR, kV, kBiased, false>(plan, query, key, to);
  }
}

static void weigh_by_position(const Block& block, int64_t row, float* scores, const float* bias, int64_t first_key) {
  const Plan& plan = block.plan;
  const RowStates& rows = block.scratch.rows;
  if (block.careful) clean_row(plan, rows, row, scores, bias);
  const AlwaysKept always = always_kept(plan, block.first + row, first_key);
  const float dropped = block.careful || block.marked ? -1.0f : 0.0f;
  if (plan.m == 2) {
    choose_row<2>(plan, rows, row, scores, always, dropped);
  } else if (plan.m == 4) {
    choose_row<4>(plan, rows, row, scores, always, dropped);
  } else {
    choose_row<0>(plan, rows, row, scores, always, dropped);
  }
}

// Weights of a row that chose by its own scores, by the line that its forward drew; entries not kept are below zero.
static void weigh_by_cut(const Block& block, int64_t row, float* scores, const float* bias, int64_t first_key) {
  const Plan& plan = block.plan;
  const NMForwardArgs& args = *plan.args;
  const int64_t at = (block.batch * args.heads + block.index) * args.q_len + block.first + row;
  const Cut cut = row < block.count ? Cut{args.least[at], args.last[at]} : kNothing;
  if (block.careful) clean_row(plan, block.scratch.rows, row, scores, bias);
  const Vec reference = broadcast(block.scratch.rows.reference[row]);
  const Vec exponent = broadcast(plan.exponent), floor = broadcast(plan.floor), dropped = broadcast(-1.0f);
  for (int i = 0; i < plan.tile; i += kWidth) {
    const Vec x = load(scores + i);
    const Mask kept = mask_of(kept_lanes(cut, x, first_key + i));
    store(scores + i, select(kept, exp2_scaled(sub(x, reference), exponent, floor), dropped));
  }
}

template <int kR>
static void weigh(const Block& block, int64_t group, int64_t tile, const GroupBias& bias, GroupKind kind) {
  const Plan& plan = block.plan;
  const RowStates& rows = block.scratch.rows;
  float* scores = block.scratch.scores + group * kR * plan.tile;
  if (kind == kChosenInRegisters) {
    weigh_rows<kTile / 2 / kWidth>(plan, rows, group * kR, kR, scores, kTile / 2);
  } else if (plan.args->least != nullptr) {
    for (int r = 0; r < kR; r++) {
      const float* row_bias = bias.rows == nullptr ? nullptr : bias.rows + r * bias.stride;
      weigh_by_cut(block, group * kR + r, scores + r * plan.tile, row_bias, tile * plan.tile);
    }
  } else if (plan.dense && !plan.counts && !block.careful) {
    if (plan.tile == kTile) {
      weigh_rows<kTile / kWidth>(plan, rows, group * kR, kR, scores, kTile);
    } else {
      weigh_rows<kTileFine / kWidth>(plan, rows, group * kR, kR, scores, kTileFine);
    }
  } else {
    for (int r = 0; r < kR; r++) {
      const float* row_bias = bias.rows == nullptr ? nullptr : bias.rows + r * bias.stride;
      weigh_by_position(block, group * kR + r, scores + r * plan.tile, row_bias, tile * plan.tile);
    }
  }
}

// First step of a tile: weights of every group. Returns false where a bias asks for the careful variant.
template <int kR, int kV>
static bool weigh_tile(const Block& block, int64_t tile, bool* any) {
  const Plan& plan = block.plan;
  const int64_t first_key = tile * plan.tile;
  const int64_t keys = smaller<int64_t>(plan.tile, plan.args->kv_len - first_key);
  const KeyCells cells = key_cells(*plan.args, block.batch, block.index, first_key, keys);
  const bool positions = block.careful || plan.generic || plan.layout == Layout::kPositions;
  GroupBias shared = {};
  bool shared_made = false;
  for (int64_t group = 0; group * kR < block.count; group++) {
    const int64_t first = block.first + group * kR;
    const int64_t last = smaller(first + kR, block.first + block.count) - 1;
    GroupKind& kind = block.scratch.kinds[group];
    kind = kSkipped;
    if (allowed_keys(plan, last, first_key) == 0) continue;
    const Cells kept = kept_cells(cells, first, last);
    if (kept == Cells::kNone) continue;
    const bool whole = allowed_keys(plan, first, first_key) == keys;
    GroupBias bias = {nullptr, 0, true, false};
    if (whole && has_shared_mask(*plan.args) && kept == Cells::kAll) {
      if (plan.args->mask != nullptr || keys < plan.tile) {
        if (!shared_made) shared = make_shared_bias(block, first_key);
        shared_made = true;
        bias = shared;
      }
    } else {
      bias = make_group_bias(block, first, last, first_key, kept == Cells::kSome ? &cells : nullptr);
    }
    if (bias.unsafe && !block.careful) return false;
    if (!bias.any) continue;
    kind = positions || touched(plan, first, last, first_key, keys) ? kByPosition : kChosenInRegisters;
    if (bias.rows != nullptr) {
      score<kR, kV, true>(block, group, tile, bias, kind);
    } else {
      score<kR, kV, false>(block, group, tile, bias, kind);
    }
    weigh<kR>(block, group, tile, bias, kind);
    *any = true;
  }
  return true;
}

// Second step: the weights of every group times the tile's values. kBits 0: the layout has no chosen groups.
template <int kR, int kV, int kBits, int kChunk>
static void add_values(const Block& block, const float* values) {
  const Plan& plan = block.plan;
  const RowStates& rows = block.scratch.rows;
  for (int chunk = 0; chunk < plan.chunks; chunk++) {
    const float* value = values + int64_t{chunk} * plan.tile * kChunk * kWidth;
    for (int64_t group = 0; group * kR < block.count; group++) {
      float* out = rows.out + group * kR * rows.out_stride + chunk * kChunk * kWidth;
      const float* weights = block.scratch.scores + group * kR * plan.tile;
      const GroupKind kind = block.scratch.kinds[group];
      if (kind == kChosenInRegisters) {
        const uint32_t* choice = block.scratch.choice + group * kR * (kTile / 2 / kWidth);
        if constexpr (kBits > 0) {
          if (plan.stride == 1) {
            sparse_group<kR, kBits, kChunk, false>(plan, out, rows.out_stride, weights, choice, value);
          } else {
            sparse_group<kR, kBits, kChunk, true>(plan, out, rows.out_stride, weights, choice, value);
          }
        }
      } else if (kind == kByPosition && block.careful) {
        for (int r = 0; r < kR; r++) careful_row(plan, out + r * rows.out_stride, weights + r * plan.tile, value);
      } else if (kind == kByPosition) {
        dense_group<kR, kV>(plan, out, rows.out_stride, weights, value);
      }
    }
  }
}

static const float* value_tile(const Block& block, int64_t tile) {
  const Plan& plan = block.plan;
  const bool partial = (tile + 1) * plan.tile > plan.args->kv_len;
  if (plan.value_in_place && partial) return block.head.value_tail;
  return block.head.values + tile * plan.tile * value_width(plan);
}

template <int kR, int kV, int kBits>
static void add_values(const Block& block, const float* values) {
  switch (block.plan.chunk) {
    case 1:
      return add_values<kR, kV, kBits, 1>(block, values);
    case 2:
      return add_values<kR, kV, kBits, 2>(block, values);
    case 3:
      return add_values<kR, kV, kBits, 3>(block, values);
    case 4:
      return add_values<kR, kV, kBits, 4>(block, values);
#if !defined(__AVX512F__)
    case 5:
      return add_values<kR, kV, kBits, 5>(block, values);
    case 6:
      return add_values<kR, kV, kBits, 6>(block, values);
    case 7:
      return add_values<kR, kV, kBits, 7>(block, values);
    case 8:
      return add_values<kR, kV, kBits, 8>(block, values);
#endif
  }
}

static void clear_rows(const Block& block) {
  const Plan& plan = block.plan;
  const RowStates& rows = block.scratch.rows;
  const size_t padded = static_cast<size_t>(round_up(block.count, plan.rows));
  memset(rows.sum, 0, padded * kWidth * sizeof(float));
  memset(rows.dropped, 0, padded * kWidth * sizeof(float));
  memset(rows.out, 0, padded * static_cast<size_t>(rows.out_stride) * sizeof(float));
  memset(rows.kept, 0, padded * sizeof(int32_t));
  memset(rows.allowed, 0, padded * sizeof(int32_t));
  memset(rows.poisoned, 0, padded);
  for (size_t i = 0; i < padded; i++) {
    rows.reference[i] = 0.0f;
    rows.threshold[i] = -INFINITY;
  }
}

// All tiles. Returns false where a bias asks for the careful variant.
template <int kR, int kV, int kBits>
static bool run_tiles(const Block& block) {
  const Plan& plan = block.plan;
  clear_rows(block);
  for (int64_t tile = 0; tile < plan.tiles; tile++) {
    if (allowed_keys(plan, block.first + block.count - 1, tile * plan.tile) == 0) break;
    bool any = false;
    if (!weigh_tile<kR, kV>(block, tile, &any)) return false;
    if (any && plan.args->drop_below > 0) {
      dropout_tile(block, tile);
      drop_weights(block, block.careful ? -1.0f : 0.0f);  // nothing dropped may touch an infinite value
    }
    if (any) add_values<kR, kV, kBits>(block, value_tile(block, tile));
  }
  return true;
}

static bool run_tiles(const Block& block) {
  const bool single = block.plan.rows == 1;
  switch (block.plan.layout) {
    case Layout::kOneOfTwo:
      return single ? run_tiles<1, kPanel, 1>(block) : run_tiles<kRows, kPanel, 1>(block);
    case Layout::kTwoOfFour:
      return single ? run_tiles<1, kPanelWide, 2>(block) : run_tiles<kRowsWide, kPanelWide, 2>(block);
    case Layout::kPositions:
      break;
  }
  if (block.plan.rows == kRowsCells) return run_tiles<kRowsCells, kPanel, 0>(block);
  if (block.plan.rows == kRowsFine) return run_tiles<kRowsFine, 1, 0>(block);
  return single ? run_tiles<1, kPanel, 0>(block) : run_tiles<kRows, kPanel, 0>(block);
}

// factor · row in the caller's dtype. float32 goes out in one pass; the last vector of a row may be a part.
static void write_row(char* to, float* row, int64_t dim, float factor, int32_t dtype) {
  if (dtype != DYNATTN_FLOAT32) {
    scale_row(row, round_up(dim, kWidth), factor);
    return from_floats(to, row, dtype, dim);
  }
  const Vec f = broadcast(factor);
  float* out = reinterpret_cast<float*>(to);
  const int64_t whole = dim / kWidth * kWidth;
  for (int64_t k = 0; k < whole; k += kWidth) store_any(out + k, mul(load(row + k), f));
  for (int64_t k = whole; k < dim; k++) out[k] = row[k] * factor;
}

static inline void finish_rows(const Block& block) {
  const Plan& plan = block.plan;
  const NMForwardArgs& args = *plan.args;
  const RowStates& rows = block.scratch.rows;
  const int64_t first_row = (block.batch * args.heads + block.index) * args.q_len + block.first;
  for (int64_t i = 0; i < block.count; i++) {
    const float sum = reduce_add(load(rows.sum + i * kWidth));
    const bool nan = rows.poisoned[i] != 0;
    // The exponent's unit is log2 of a score: reference · exponent / log2(e) is the score itself.
    const float reference = rows.reference[i] * (plan.exponent == kLog2e ? 1.0f : fabsf(args.scale));
    const int64_t at =
        block.batch * args.out_strides[0] + block.index * args.out_strides[1] + (block.first + i) * args.out_strides[2];
    write_row(static_cast<char*>(args.out) + at * element_size(args.dtype), rows.out + i * rows.out_stride,
              args.value_dim,
              nan          ? NAN
              : sum > 0.0f ? 1.0f / sum
                           : 0.0f,
              args.dtype);
    args.logsumexp[first_row + i] = rows.poisoned[i] & kNan ? NAN
                                    : nan                   ? INFINITY
                                    : sum > 0.0f            ? reference + logf(sum)
                                                            : -INFINITY;
    if (plan.counts) {
      const float dropped = reduce_add(load(rows.dropped + i * kWidth));
      args.kept_mass[first_row + i] = nan ? NAN : sum > 0.0f ? sum / (sum + dropped) : 1.0f;
      args.kept[first_row + i] = rows.kept[i];
      args.allowed[first_row + i] = rows.allowed[i];
    }
  }
}

// Largest magnitude that sums of products may reach before the careful variant has to watch for overflow.
constexpr float kLargestScore = 1e37f;

// A block with its queries packed.
static inline Block open_block(const Plan& plan, const PackedHead& head, const Scratch& scratch, int64_t batch,
                               int64_t index, int64_t first) {
  const NMForwardArgs& args = *plan.args;
  Block block = {plan,  head, scratch, batch, index, first, smaller<int64_t>(plan.block, args.q_len - first),
                 false, false};
  const int64_t at = batch * args.query_strides[0] + index * args.query_strides[1];
  const float query_bound =
      pack_queries(plan, element(args.query, at, args.dtype), first, block.count, scratch.queries);
  const float largest =
      query_bound * head.key_bound * larger(1.0f, plan.multiplier) * static_cast<float>(args.head_dim);
  block.careful = plan.careful || !head.finite || !(largest < kLargestScore);
  return block;
}

static inline void run_block(const Plan& plan, const PackedHead& head, const Scratch& scratch, int64_t batch,
                             int64_t index, int64_t first) {
  Block block = open_block(plan, head, scratch, batch, index, first);
  if (!run_tiles(block)) {
    block.careful = true;
    run_tiles(block);
  }
  finish_rows(block);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
