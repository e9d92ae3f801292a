// The bias of one band of rows over one tile: mask, causality, the end of the keys and dropped blocks, by position.
#pragma once

#include "common/block_mask.h"
#include "common/query_block.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct BandBias {
  const float* rows;  // NULL: nothing to add
  int64_t stride;     // between rows; 0 where all rows see the same
  bool any, unsafe;   // as BiasSummary has them
};

constexpr BandBias kNoBias = {nullptr, 0, true, false};

DYNATTN_INLINE bool has_shared_mask(const NMForwardArgs& args) {
  return args.mask == nullptr || args.mask_strides[2] == 0;
}

static const char* mask_entries(const QueryBlock& block, int64_t query, int64_t key) {
  const NMForwardArgs& args = *block.plan.args;
  if (args.mask == nullptr) return nullptr;
  const int64_t* stride = args.mask_strides;
  const int64_t index = block.batch * stride[0] + block.index * stride[1] + query * stride[2] + key * stride[3];
  return element(args.mask, index, args.mask_dtype);
}

static BandBias as_band_bias(const BiasSummary& all, const Plan& plan, const float* rows, int64_t stride) {
  const bool needed = !all.neutral || plan.multiplier != 1.0f;
  return {needed ? rows : nullptr, stride, all.any, all.unsafe};
}

// The bias of rows that all see the same keys. It is made once for each tile.
static BandBias make_shared_bias(const QueryBlock& block, int64_t first_key) {
  const Plan& plan = block.plan;
  const int64_t allowed = smaller<int64_t>(plan.tile, plan.args->kv_len - first_key);
  const char* mask = mask_entries(block, block.first, first_key);
  return as_band_bias(bias_row(plan, mask, allowed, block.scratch.shared_bias), plan, block.scratch.shared_bias, 0);
}

// Forbids the keys that are not reached, in the row's bias.
static BiasSummary forbid_far_keys(const Plan& plan, const BiasSummary& row, const ReachedKeys& reached, float* bias) {
  const Vec forbidden = broadcast(-INFINITY);
  uint32_t any = 0;
  for (int position = 0; position < plan.tile; position += kWidth) {
    const Mask near = holds(reached, load(plan.key_number + position));
    const Vec left = select(near, load(bias + position), forbidden);
    store(bias + position, left);
    any |= bits(greater(left, forbidden));
  }
  return {any != 0 || row.unsafe, false, row.unsafe};
}

// The bias of one query over a tile. `columns` is NULL where the query keeps all blocks of the tile. `laid` are the
// blocks whose bias scratch.block_bias already holds, since neighbouring queries mostly share their blocks.
static BiasSummary make_row_bias(const QueryBlock& block, int64_t query, int64_t first_key, const BlockColumns* columns,
                                 const uint8_t*& laid, float* bias) {
  const Plan& plan = block.plan;
  BiasSummary row =
      bias_row(plan, mask_entries(block, query, first_key), allowed_keys(plan, query, first_key), bias);
  const NMForwardArgs& args = *plan.args;
  if (plan.confined) {
    row = forbid_far_keys(plan, row, reached_keys(plan, cutting_reach(args), query, first_key), bias);
  }
  if (columns == nullptr) return row;
  const uint8_t* blocks = block_row(*columns, query);
  if (blocks != laid) lay_block_bias(plan, *columns, blocks, first_key, block.scratch.block_bias);
  laid = blocks;
  const Reach spared = args.beyond_blocks != 0 ? joined_reach(args) : kNoReach;
  return forbid_dropped_blocks(plan, row, block.scratch.block_bias, reached_keys(plan, spared, query, first_key), bias);
}

// The biases of rows [first, last], one for each row. Rows of padding repeat the last.
static BandBias make_own_biases(const QueryBlock& block, int64_t first, int64_t last, int64_t first_key,
                                const BlockColumns* columns) {
  const Plan& plan = block.plan;
  BiasSummary all = {false, true, false};
  const uint8_t* laid = nullptr;
  for (int64_t r = 0; r < plan.rows; r++) {
    float* bias = block.scratch.bias + r * plan.tile;
    const BiasSummary row = make_row_bias(block, smaller(first + r, last), first_key, columns, laid, bias);
    all = {all.any || row.any, all.neutral && row.neutral, all.unsafe || row.unsafe};
  }
  return as_band_bias(all, plan, block.scratch.bias, plan.tile);
}

// The biases of the bands of one query block over one tile. What all rows share is made once, when the first band
// needs it.
struct TileBias {
  const QueryBlock& block;
  int64_t first_key, keys;  // of the tile, without padding
  BandBias shared;
  bool shared_made;

  TileBias(const QueryBlock& of, int64_t tile)
      : block(of),
        first_key(tile * of.plan.tile),
        keys(smaller<int64_t>(of.plan.tile, of.plan.args->kv_len - first_key)),
        shared(kNoBias),
        shared_made(false) {}

  // The bias of rows [first, last]; `columns`: NULL where all of their blocks are kept.
  BandBias of_band(int64_t first, int64_t last, const BlockColumns* columns) {
    const Plan& plan = block.plan;
    const bool whole = allowed_keys(plan, first, first_key) == keys &&  // causality cuts nothing off
                       !(plan.confined && is_cut(plan, area_of(plan, first, last, first_key, keys)));
    if (!whole || !has_shared_mask(*plan.args) || columns != nullptr)
      return make_own_biases(block, first, last, first_key, columns);
    if (plan.args->mask == nullptr && keys == plan.tile) return kNoBias;
    if (!shared_made) shared = make_shared_bias(block, first_key);
    shared_made = true;
    return shared;
  }
};

}  // namespace dynattn::DYNATTN_NAMESPACE
