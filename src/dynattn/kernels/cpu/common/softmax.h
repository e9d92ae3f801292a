// Online softmax: weights of one row and tile against the row's largest score so far.
//
// The sums of a row are rescaled only when its maximum has grown by more than a factor of 2^8. Until then weights up to
// 2^8 do no harm, and nearly all tiles after the first need no rescaling.
#pragma once

#include "common/arena.h"
#include "common/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

enum Poison : uint8_t { kInfinite = 1, kNan = 2 };

// The state of the rows of a query block. Sums are kept by lane and added up at the end.
struct RowStates {
  float* reference;  // the score that weights are relative to
  float* ceiling;    // a larger score asks for a new reference; -inf before the first
  float* sum;        // [row][kWidth] weights kept
  float* dropped;    // [row][kWidth] weights dropped
  float* out;        // [row][out_stride], and where weights are rounded the sums of those, by lane, behind each
  int64_t out_stride;
  int32_t* kept;
  int32_t* allowed;
  uint8_t* poisoned;  // kInfinite when a score was +inf, kNan when one was NaN: the row's output is NaN
};

static RowStates lay_rows(const Plan& plan, int64_t rows, Arena& arena) {
  RowStates states;
  states.reference = arena.take<float>(rows);
  states.ceiling = arena.take<float>(rows);
  states.sum = arena.take<float>(rows * kWidth);
  states.dropped = arena.take<float>(rows * kWidth);
  states.out_stride = value_width(plan) + (plan.rounds ? kWidth : 0);
  states.out = arena.take<float>(rows * states.out_stride);
  states.kept = arena.take<int32_t>(rows);
  states.allowed = arena.take<int32_t>(rows);
  states.poisoned = arena.take<uint8_t>(rows);
  return states;
}

static void scale_row(float* row, int64_t count, float factor) {
  const Vec f = broadcast(factor);
  for (int64_t i = 0; i < count; i += kWidth) store(row + i, mul(load(row + i), f));
}

static __attribute__((noinline)) void raise_reference(const Plan& plan, const RowStates& rows, int64_t row,
                                                      float largest) {
  if (rows.ceiling[row] != -INFINITY) {
    const float factor = exp2f((rows.reference[row] - largest) * plan.exponent);
    scale_row(rows.sum + row * kWidth, kWidth, factor);
    scale_row(rows.dropped + row * kWidth, kWidth, factor);
    scale_row(rows.out + row * rows.out_stride, rows.out_stride, factor);
  }
  rows.reference[row] = largest;
  rows.ceiling[row] = largest + plan.growth;
}

DYNATTN_INLINE void follow_maximum(const Plan& plan, const RowStates& rows, int64_t row, Vec largest) {
  if (__builtin_expect(bits(greater(largest, broadcast(rows.ceiling[row]))) != 0, 0)) {
    raise_reference(plan, rows, row, reduce_max(largest));
  }
}

// The largest of `count` scores, at least one vector, lane by lane.
DYNATTN_INLINE Vec largest_lanes(const float* scores, int count) {
  Vec largest = load(scores);
  for (int i = kWidth; i < count; i += kWidth) largest = max(largest, load(scores + i));
  return largest;
}

// Scores of `count` rows, kVectors each, `stride` apart, become weights, in place; all of them are kept. The maxima
// come first: in the second loop nothing is called, so that its constants stay in registers.
template <int kVectors>
static void weigh_rows(const Plan& plan, const RowStates& rows, int64_t first, int count, float* scores,
                       int64_t stride) {
  for (int r = 0; r < count; r++) {
    Vec largest = load(scores + r * stride);
#pragma GCC unroll 16
    for (int i = 1; i < kVectors; i++) largest = max(largest, load(scores + r * stride + i * kWidth));
    follow_maximum(plan, rows, first + r, largest);
  }
  const Vec exponent = broadcast(plan.exponent), floor = broadcast(plan.floor);
  const float* references = rows.reference + first;
  float* sums = rows.sum + first * kWidth;
  for (int r = 0; r < count; r++) {
    const Vec reference = broadcast(references[r]);
    Vec sum = load(sums + r * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; i++) {
      float* at = scores + r * stride + i * kWidth;
      const Vec weight = exp2_scaled(sub(load(at), reference), exponent, floor);
      store(at, weight);
      sum = add(sum, weight);
    }
    store(sums + r * kWidth, sum);
  }
}

// Scores by position that may be NaN or infinite: forbidden ones become -inf, whatever they were; others that are
// NaN or +inf poison the row, and go on as the largest float so that they are kept.
static inline void clean_row(const Plan& plan, const RowStates& rows, int64_t row, float* scores, const float* bias) {
  constexpr uint32_t all = (uint32_t{1} << kWidth) - 1;
  const Vec infinity = broadcast(INFINITY), largest = broadcast(FLT_MAX), lowest = broadcast(-FLT_MAX);
  for (int position = 0; position < plan.tile; position += kWidth) {
    Vec x = load(scores + position);
    if (bias != nullptr) x = select(greater(lowest, load(bias + position)), broadcast(-INFINITY), x);
    const Mask finite = greater(infinity, x);
    const uint32_t numbers = bits(greater(x, lowest)) | bits(greater(largest, x));  // NaN is neither
    if (bits(finite) != all) rows.poisoned[row] |= numbers == all ? kInfinite : kNan;
    store(scores + position, select(finite, x, largest));
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
