// Online softmax: weights of one row and tile against the row's largest score so far.
//
// What a row has accumulated is rescaled only when its maximum has grown by more than a factor 2^8; until then
// weights up to 2^8 do no harm, and nearly all tiles after the first pass without a rescaling.
#pragma once

#include "plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

enum Poison : uint8_t { kInfinite = 1, kNan = 2 };

// What a block's rows have accumulated. Sums are kept by lane and added up at the end.
struct RowStates {
  float* reference;  // the score that weights are relative to
  float* threshold;  // a larger score asks for a new reference; -inf before the first
  float* sum;        // [row][kWidth] weights kept
  float* dropped;    // [row][kWidth] weights dropped
  float* out;        // [row][out_stride]
  int64_t out_stride;
  int32_t* kept;
  int32_t* allowed;
  uint8_t* poisoned;  // kInfinite when a score was +inf, kNan when one was NaN: the row's output is NaN
};

static void scale_row(float* row, int64_t count, float factor) {
  const Vec f = broadcast(factor);
  for (int64_t i = 0; i < count; i += kWidth) store(row + i, mul(load(row + i), f));
}

static __attribute__((noinline)) void raise_reference(const Plan& plan, const RowStates& rows, int64_t row,
                                                      float largest) {
  if (rows.threshold[row] != -INFINITY) {
    const float factor = exp2f((rows.reference[row] - largest) * plan.exponent);
    scale_row(rows.sum + row * kWidth, kWidth, factor);
    scale_row(rows.dropped + row * kWidth, kWidth, factor);
    scale_row(rows.out + row * rows.out_stride, rows.out_stride, factor);
  }
  rows.reference[row] = largest;
  rows.threshold[row] = largest + plan.growth;
}

DYNATTN_INLINE void follow_maximum(const Plan& plan, const RowStates& rows, int64_t row, Vec largest) {
  if (__builtin_expect(bits(greater(largest, broadcast(rows.threshold[row]))) != 0, 0)) {
    raise_reference(plan, rows, row, reduce_max(largest));
  }
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

// Entries kept whatever the choice: keys between `low` and `high`, both excluded, and keys below `sinks`; counted
// from the tile's first key.
struct AlwaysKept {
  Vec low, high, sinks;
};

// Bounds are rounded to what a float holds exactly; tiles are far shorter.
DYNATTN_INLINE Vec bound(int64_t key) {
  return broadcast(static_cast<float>(smaller<int64_t>(larger<int64_t>(key, -kMaxTile), 2 * kMaxTile)));
}

DYNATTN_INLINE AlwaysKept always_kept(const Plan& plan, int64_t query, int64_t first_key) {
  if (!plan.window) return {bound(0), bound(0), bound(0)};
  const int64_t centre = query + plan.offset - first_key, window = plan.args->window;
  return {bound(centre - window), bound(centre + window), bound(plan.args->sinks - first_key)};
}

// Scores by position that may be NaN or infinite: forbidden ones become -inf, whatever they were; others that are
// NaN or +inf poison the row, and go on as the largest float so that they are kept.
static void clean_row(const Plan& plan, const RowStates& rows, int64_t row, float* scores, const float* bias) {
  constexpr uint32_t all = (uint32_t{1} << kWidth) - 1;
  const Vec infinity = broadcast(INFINITY), largest = broadcast(FLT_MAX), least = broadcast(-FLT_MAX);
  for (int position = 0; position < plan.tile; position += kWidth) {
    Vec x = load(scores + position);
    if (bias != nullptr) x = select(greater(least, load(bias + position)), broadcast(-INFINITY), x);
    const Mask finite = greater(infinity, x);
    const uint32_t numbers = bits(greater(x, least)) | bits(greater(largest, x));  // NaN is neither
    if (bits(finite) != all) rows.poisoned[row] |= numbers == all ? kInfinite : kNan;
    store(scores + position, select(finite, x, largest));
  }
}

// Scores by position become weights, in place; those not kept become `dropped_weight`. An entry's rank is the number
// of members of its group that beat it, and the first n are kept. kM: the group's size, 0 when known only at run time.
template <int kM>
static void choose_row(const Plan& plan, const RowStates& rows, int64_t row, float* scores, const AlwaysKept& always,
                       float dropped_weight) {
  const int m = kM ? kM : plan.m;
  Vec largest = load(scores);
  for (int i = kWidth; i < plan.tile; i += kWidth) largest = max(largest, load(scores + i));
  follow_maximum(plan, rows, row, largest);

  const Vec reference = broadcast(rows.reference[row]), exponent = broadcast(plan.exponent),
            floor = broadcast(plan.floor);
  const Vec one = broadcast(1.0f), wanted = broadcast(static_cast<float>(plan.n));
  Vec sum = load(rows.sum + row * kWidth), dropped = load(rows.dropped + row * kWidth);
  for (int start = 0; start < plan.tile; start += m * kWidth) {
    float* group = scores + start;
    Vec rank[kM ? kM : kMaxM];
    for (int i = 0; i < m; i++) rank[i] = zero();
    for (int j = 1; j < m; j++) {
      for (int i = 0; i < j; i++) {
        const Mask later = greater(load(group + j * kWidth), load(group + i * kWidth));
        rank[i] = select(later, add(rank[i], one), rank[i]);
        rank[j] = select(later, rank[j], add(rank[j], one));
      }
    }
    for (int i = 0; i < m; i++) {
      const Vec x = load(group + i * kWidth), key = load(plan.key_number + start + i * kWidth);
      const Mask allowed = greater(x, broadcast(-INFINITY));
      const Mask forced = either(both(greater(key, always.low), greater(always.high, key)), greater(always.sinks, key));
      const Mask keep = both(either(greater(wanted, rank[i]), forced), allowed);
      const Vec weight = exp2_scaled(sub(x, reference), exponent, floor);
      sum = add(sum, select(keep, weight, zero()));
      if (plan.counts) {
        dropped = add(dropped, select(keep, zero(), select(allowed, weight, zero())));
        rows.kept[row] += __builtin_popcount(bits(keep));
        rows.allowed[row] += __builtin_popcount(bits(allowed));
      }
      store(group + i * kWidth, select(keep, weight, broadcast(dropped_weight)));
    }
  }
  store(rows.sum + row * kWidth, sum);
  store(rows.dropped + row * kWidth, dropped);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
