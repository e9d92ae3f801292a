// What a task works on: a block of queries, the keys it meets, and the memory for both.
#pragma once

#include "layouter.h"

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

enum GroupKind : uint8_t { kSkipped, kChosenInRegisters, kByPosition };

// A thread's memory for one block.
struct Scratch {
  float* queries;
  float* scores;       // [group][rows][tile], of which chosen groups use the front half
  uint32_t* choice;    // [group][rows][kTile / 2 / kWidth]
  float* shared_bias;  // [tile]
  float* bias;         // [rows][tile]
  float* cells;        // [tile]: a row of them by position; NULL without
  float* drops;        // factors of dropout, as the weights lie; NULL without
  GroupKind* kinds;
  RowStates rows;
};

static Scratch lay_scratch(const Plan& plan, Layouter& layouter) {
  const int64_t rows = plan.block;
  Scratch s;
  s.queries = layouter.take<float>(rows * plan.args->head_dim + 2 * kWidth);
  s.scores = layouter.take<float>(rows * plan.tile);
  s.choice = layouter.take<uint32_t>(rows * (kTile / 2 / kWidth));
  s.shared_bias = layouter.take<float>(plan.tile);
  s.bias = layouter.take<float>(int64_t{plan.rows} * plan.tile);
  s.cells = plan.args->cells != nullptr ? layouter.take<float>(plan.tile) : nullptr;
  s.drops = plan.args->drop_below > 0 ? layouter.take<float>(rows * plan.tile) : nullptr;
  s.kinds = layouter.take<GroupKind>(rows);
  s.rows = lay_rows(plan, rows, layouter);
  return s;
}

struct Block {
  const Plan& plan;
  const PackedHead& head;
  const Scratch& scratch;
  int64_t batch, index;  // index of the query head
  int64_t first, count;  // rows
  bool careful;          // scores, keys or values may be NaN or infinite
  bool marked;           // weights by position of entries not kept are below zero; always so in careful blocks
};

}  // namespace dynattn::DYNATTN_NAMESPACE
