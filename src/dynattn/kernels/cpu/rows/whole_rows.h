// Rows that keep most of their keys: weights stay in the order of the keys, with zeros for what is dropped, and values are
// multiplied by whole tiles. A value row that is found by a list costs as much as two of these.
#pragma once

#include "common/query_block.h"
#include "common/threshold.h"

namespace dynattn::DYNATTN_NAMESPACE {

// How many of `length` scores a row keeps.
static int64_t count_kept(const float* scores, int64_t length, const Threshold& threshold) {
  int64_t kept = 0;
  for (int64_t at = 0; at < length; at += kWidth) kept += __builtin_popcount(kept_lanes(threshold, load(scores + at), at));
  return kept;
}

// Scores become weights, in place; their sum by lane. Returns the largest score.
static float weigh_in_place(const Plan& plan, float* scores, int64_t length, const Threshold& threshold, float* sums) {
  Vec largest = broadcast(-INFINITY), sum = zero();
  for (int64_t at = 0; at < length; at += kWidth) largest = max(largest, load(scores + at));
  const float most = reduce_max(largest);
  const Vec reference = broadcast(most), exponent = broadcast(plan.exponent), floor = broadcast(plan.floor);
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(scores + at);
    const Vec weight = exp2_scaled(sub(x, reference), exponent, floor);
    const Vec kept = select(mask_of(kept_lanes(threshold, x, at)), weight, zero());
    store(scores + at, kept);
    sum = add(sum, kept);
  }
  store(sums, sum);
  return most;
}

// kR rows × kC vectors of the output, `count` keys of a tile. Rows of weights are `stride` apart.
template <int kR, int kC>
static void add_tile(const float* weights, int64_t stride, const float* value, int64_t width, int64_t count, float* out,
                     int64_t out_stride) {
  Vec acc[kR][kC];
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 4
    for (int c = 0; c < kC; c++) acc[r][c] = load(out + r * out_stride + c * kWidth);
  }
  for (int64_t key = 0; key < count; key++, value += width) {
    Vec b[kC];
#pragma GCC unroll 4
    for (int c = 0; c < kC; c++) b[c] = load(value + c * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
      const Vec weight = broadcast(weights[r * stride + key]);
#pragma GCC unroll 4
      for (int c = 0; c < kC; c++) acc[r][c] = fmadd(weight, b[c], acc[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 4
    for (int c = 0; c < kC; c++) store(out + r * out_stride + c * kWidth, acc[r][c]);
  }
}

// Weights of all rows of a query block times the values of their first `keys` keys. Of rows that fill up the last band,
// weights are 0.
template <int kR>
static void add_whole_rows(const QueryBlock& block, const float* weights, int64_t stride, int64_t keys) {
  const Plan& plan = block.plan;
  const RowStates& rows = block.scratch.rows;
  const int64_t width = int64_t{plan.chunk} * kWidth;
  for (int64_t tile = 0, first = 0; first < keys; tile++, first += plan.tile) {
    const int64_t count = smaller<int64_t>(plan.tile, keys - first);
    for (int chunk = 0; chunk < plan.chunks; chunk++) {
      const float* value = block.head.values + tile * plan.tile * value_width(plan) + chunk * plan.tile * width;
      for (int64_t row = 0; row < block.count; row += kR) {
        const float* from = weights + row * stride + first;
        float* out = rows.out + row * rows.out_stride + chunk * width;
        int c = 0;
        for (; c + 2 <= plan.chunk; c += 2) {
          add_tile<kR, 2>(from, stride, value + c * kWidth, width, count, out + c * kWidth, rows.out_stride);
        }
        if (c < plan.chunk) {
          add_tile<kR, 1>(from, stride, value + c * kWidth, width, count, out + c * kWidth, rows.out_stride);
        }
      }
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
