// A query block: what one task computes. It holds queries of one head, the keys that they meet, and the memory for
// both.
#pragma once

#include "common/pack.h"
#include "common/softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

// A head's keys and values as the kernels read them.
struct PackedHead {
  int64_t first_tile;  // of those packed
  const float* keys;
  const float* values;      // packed, or the caller's
  const float* value_tail;  // the partial last tile of the caller's values, padded
  bool finite;              // no NaN or infinity in keys or values
  float key_bound;          // the largest magnitude of a key element
};

// How a band of rows has got its weights over one tile of keys.
enum BandKind : uint8_t { kSkipped, kChosenInRegisters, kByPosition };

// A thread's memory for one query block.
struct Scratch {
  float* queries;
  float* scores;       // [band][rows][tile], of which bands chosen in registers use the front half
  uint32_t* choice;    // [band][rows][kTile / 2 / kWidth]
  float* shared_bias;  // [tile]
  float* bias;         // [rows][tile]
  float* block_bias;   // [tile], by position: what a row's blocks forbid; NULL without blocks
  uint32_t* left;      // a bit for each weight, as the weights lie: dropout leaves it; NULL without dropout
  BandKind* kinds;
  RowStates rows;
};

static Scratch lay_scratch(const Plan& plan, Arena& arena) {
  const int64_t rows = plan.query_block;
  Scratch s;
  s.queries = arena.take<float>(rows * plan.args->head_dim + 2 * kWidth);
  s.scores = arena.take<float>(rows * plan.tile);
  s.choice = arena.take<uint32_t>(rows * (kTile / 2 / kWidth));
  s.shared_bias = arena.take<float>(plan.tile);
  s.bias = arena.take<float>(int64_t{plan.rows} * plan.tile);
  s.block_bias = plan.args->blocks != nullptr ? arena.take<float>(plan.tile) : nullptr;
  s.left = plan.args->drop_below > 0 ? arena.take<uint32_t>(rows * plan.tile / kWidth) : nullptr;
  s.kinds = arena.take<BandKind>(rows);
  s.rows = lay_rows(plan, rows, arena);
  return s;
}

struct QueryBlock {
  const Plan& plan;
  const PackedHead& head;
  const Scratch& scratch;
  int64_t batch, index;  // index of the query head
  int64_t first, count;  // rows
  bool careful;          // scores, keys or values may be NaN or infinite
  bool marked;           // weights by position of entries not kept are below zero; always so in careful blocks
};

// Number of the block's first row among the rows of all heads, which logsumexp and the counts are laid out by.
DYNATTN_INLINE int64_t first_row(const QueryBlock& block) {
  const NMForwardArgs& args = *block.plan.args;
  return (block.batch * args.heads + block.index) * args.q_len + block.first;
}

// How many of the tile's keys causality and the end of the keys leave to a query.
DYNATTN_INLINE int64_t allowed_keys(const Plan& plan, int64_t query, int64_t first_key) {
  int64_t end = plan.args->kv_len;
  if (plan.args->causal) end = smaller(end, query + plan.offset + 1);
  return larger<int64_t>(0, smaller<int64_t>(plan.tile, end - first_key));
}

// Queries [first, last] and `keys` keys from `first_key` on.
DYNATTN_INLINE Area area_of(const Plan& plan, int64_t first, int64_t last, int64_t first_key, int64_t keys) {
  return {first + plan.offset, last + plan.offset, first_key, keys};
}

// True where all that is kept of these pairs is dropped for where it stands.
DYNATTN_INLINE bool is_cut_off(const Plan& plan, const Area& area) {
  return plan.cut && !meets(cutting_reach(*plan.args), area);
}

// True where some of these pairs may be.
DYNATTN_INLINE bool is_cut(const Plan& plan, const Area& area) {
  return plan.cut && !fills(cutting_reach(*plan.args), area);
}

// Sums of products may reach this magnitude before the careful variant has to watch for overflow.
constexpr float kLargestScore = 1e37f;

// A block with its queries packed.
static inline QueryBlock open_query_block(const Plan& plan, const PackedHead& head, const Scratch& scratch,
                                          int64_t batch, int64_t index, int64_t first) {
  const NMForwardArgs& args = *plan.args;
  QueryBlock block = {plan,  head, scratch, batch, index, first, smaller<int64_t>(plan.query_block, args.q_len - first),
                      false, false};
  const int64_t at = batch * args.query_strides[0] + index * args.query_strides[1];
  const float query_bound =
      pack_queries(plan, element(args.query, at, args.dtype), first, block.count, scratch.queries);
  const float largest =
      query_bound * head.key_bound * larger(1.0f, plan.multiplier) * static_cast<float>(args.head_dim);
  block.careful = plan.careful || !head.finite || !(largest < kLargestScore);
  return block;
}

static void clear_rows(const QueryBlock& block) {
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
    rows.ceiling[i] = -INFINITY;
  }
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

// Output and, where they are asked for, logsumexp and counts of all rows, whose last tile has been added; or their sums
// alone.
static inline void finish_rows(const QueryBlock& block) {
  const Plan& plan = block.plan;
  const NMForwardArgs& args = *plan.args;
  const RowStates& rows = block.scratch.rows;
  for (int64_t i = 0; i < block.count; i++) {
    const float sum = reduce_add(load(rows.sum + i * kWidth));
    const int64_t row = first_row(block) + i;
    if (plan.sums.sum != nullptr) {
      plan.sums.origin[row] = rows.reference[i], plan.sums.sum[row] = sum;
      continue;
    }
    const bool nan = rows.poisoned[i] != 0;
    // The exponent's unit is log2 of a score: reference · exponent / log2(e) is the score itself.
    const float reference = rows.reference[i] * (plan.exponent == kLog2e ? 1.0f : fabsf(args.scale));
    const int64_t at =
        block.batch * args.out_strides[0] + block.index * args.out_strides[1] + (block.first + i) * args.out_strides[2];
    float* const out = rows.out + i * rows.out_stride;
    const float weights = plan.rounds ? reduce_add(load(out + value_width(plan))) : sum;
    const float factor = nan ? NAN : sum > 0.0f ? 1.0f / weights : 0.0f;
    write_row(static_cast<char*>(args.out) + at * element_size(args.dtype), out, args.value_dim, factor, args.dtype);
    if (args.logsumexp != nullptr) {
      args.logsumexp[row] = rows.poisoned[i] & kNan ? NAN
                            : nan                   ? INFINITY
                            : sum > 0.0f            ? reference + logf(sum)
                                                    : -INFINITY;
    }
    if (plan.counts) {
      const float dropped = reduce_add(load(rows.dropped + i * kWidth));
      args.kept_mass[row] = nan ? NAN : sum + dropped == 0.0f ? 1.0f : sum / (sum + dropped);
      args.kept[row] = rows.kept[i];
      args.allowed[row] = rows.allowed[i];
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
