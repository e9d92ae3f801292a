// Squares of queries and keys that are forbidden whole: the choice of methods that keep blocks of keys for blocks of
// queries. What a square forbids is not read, where nothing else of its group of rows and tile of keys is kept.
#pragma once

#include "mask.h"

namespace dynattn::DYNATTN_NAMESPACE {

enum class Cells : uint8_t { kNone, kSome, kAll };

// The cells of one head that a run of keys meets.
struct KeyCells {
  const uint8_t* at;      // the run's first in row 0; NULL: there are none, and everything is kept
  int64_t stride, count;  // cells of a row, and of the run
  int64_t side;
};

static KeyCells key_cells(const NMForwardArgs& args, int64_t batch, int64_t head, int64_t first_key, int64_t keys) {
  if (args.cells == nullptr || keys <= 0) return {nullptr, 0, 0, 1};
  const int64_t side = args.cell, rows = ceil_div(args.q_len, side), columns = ceil_div(args.kv_len, side);
  const int64_t first = first_key / side;
  const uint8_t* cells = args.cells + (batch * args.heads + head) * rows * columns;
  return {cells + first, columns, (first_key + keys - 1) / side - first + 1, side};
}

DYNATTN_INLINE const uint8_t* cells_of(const KeyCells& cells, int64_t query) {
  return cells.at + query / cells.side * cells.stride;
}

// Which of the run's cells queries [first, last] keep.
DYNATTN_INLINE Cells kept_cells(const KeyCells& cells, int64_t first, int64_t last) {
  if (cells.at == nullptr) return Cells::kAll;
  bool any = false, all = true;
  const uint8_t* row = cells_of(cells, first);
  for (int64_t query = first / cells.side * cells.side; query <= last; query += cells.side, row += cells.stride) {
    for (int64_t i = 0; i < cells.count; i++) {
      any |= row[i] != 0;
      all &= row[i] != 0;
    }
  }
  return all ? Cells::kAll : any ? Cells::kSome : Cells::kNone;
}

// A row of a tile's cells by position: 0 where kept, -inf where forbidden.
static void lay_cells(const Plan& plan, const KeyCells& cells, const uint8_t* row, int64_t first_key, float* to) {
  alignas(64) float by_key[kMaxTile];
  int64_t end = cells.side - first_key % cells.side;  // of the cell
  for (int64_t key = 0, i = 0; key < plan.tile; i++, end += cells.side) {
    const float bias = i >= cells.count || row[i] != 0 ? 0.0f : -INFINITY;  // behind the last cell there are no keys
    for (; key < end && key < plan.tile; key++) by_key[key] = bias;
  }
  for (int position = 0; position < plan.tile; position++) to[position] = by_key[plan.key_of[position]];
}

// A row's bias without what its cells forbid, in place; `cells` is as lay_cells() gives it.
static BiasSummary forbid_cells(const Plan& plan, const BiasSummary& row, const float* cells, float* bias) {
  const Vec least = broadcast(-INFINITY);
  uint32_t any = 0;
  for (int position = 0; position < plan.tile; position += kWidth) {
    const Vec cell = load(cells + position);
    const Vec left = select(greater(zero(), cell), cell, load(bias + position));
    store(bias + position, left);
    any |= bits(greater(left, least));
  }
  return {any != 0 || row.unsafe, false, row.unsafe};
}

}  // namespace dynattn::DYNATTN_NAMESPACE
