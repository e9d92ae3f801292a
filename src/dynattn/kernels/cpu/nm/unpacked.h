// Products of a few queries with keys that are read in place, along head_dim, and how far ahead rows are asked for.
#pragma once

#include "common/pack.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kKeysAtOnce = kRegisters == 32 ? 4 : 2;  // beside kRowsAtOnce rows

// Keys from the asking for a row to its reading, by measurement, in tiles whose keys are read in their order or two
// vectors at a time; elsewhere a tile.
constexpr int kKeysAhead = 48;

constexpr int kValuesAhead = 8;  // a value row is prefetched so many kept keys before it is read

// The rows of one head and tile, and those that a task reads after them: the next head's, and behind the last head the
// first head's of the next tile.
struct TileRows {
  const char* const* row;  // of the first head
  const char* const* next;
  int64_t shift, next_shift;  // bytes from the first head's rows to those
  int64_t tile, ahead;        // keys of a tile; a row is asked for so many keys before it is read

  // The row to ask for when row `key` of the tile is read.
  DYNATTN_INLINE const char* soon(const TileRows& rows, int64_t key) {
    key += rows.ahead;
    return key < rows.tile ? rows.row[key] + rows.shift : rows.next[key - rows.tile] + rows.next_shift;
  }
};

// A row converted to floats and padded with zeros.
static void copy_row(float* to, const char* row, int32_t dtype, int64_t dim, int64_t width) {
  to_floats(to, row, dtype, dim);
  for (int64_t k = dim; k < width; k++) to[k] = 0.0f;
}

// scores[r][lane] = Σ_k queries[r][k] · keys[lane][k]. Lanes are summed for kWidth keys at once, each in the same
// order, so that equal keys get equal scores, to the bit.
template <int kR>
static void dot_rows(const float* queries, int64_t width, const float* const keys[kWidth], float* scores,
                     int64_t stride) {
  Vec sums[kR][kWidth];
  for (int j = 0; j < kWidth; j += kKeysAtOnce) {
    Vec acc[kR][kKeysAtOnce];
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
      for (int i = 0; i < kKeysAtOnce; i++) acc[r][i] = zero();
    }
    for (int64_t k = 0; k < width; k += kWidth) {
      Vec b[kKeysAtOnce];
#pragma GCC unroll 16
      for (int i = 0; i < kKeysAtOnce; i++) b[i] = load_any(keys[j + i] + k);
#pragma GCC unroll 16
      for (int r = 0; r < kR; r++) {
        const Vec a = load(queries + r * width + k);
#pragma GCC unroll 16
        for (int i = 0; i < kKeysAtOnce; i++) acc[r][i] = fmadd(a, b[i], acc[r][i]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
      for (int i = 0; i < kKeysAtOnce; i++) sums[r][j + i] = acc[r][i];
    }
  }
  for (int r = 0; r < kR; r++) store(scores + r * stride, sum_each(sums[r]));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
