// Weights times values, accumulated into the output rows of a query block.
#pragma once

#include "common/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// With a stride, places are multiplied by it, and by this part of a value row's width, before they are taken apart:
// once a word, not once a survivor. Both are powers of two, so that places stay apart.
template <int kChunk, bool kStrided>
constexpr int place_unit() {
  return kStrided ? kWidth * (kChunk & -kChunk) : 1;
}

// One survivor of each of kR rows: lane `lane` + kLane of a vector. `places` are multiplied by `step`.
// Neighbouring lanes hold neighbouring groups, which start a key (kStrided) or a group of keys apart.
template <int kBits, int kChunk, bool kStrided, int kR, int kLane>
DYNATTN_INLINE void add_survivors(Vec acc[kR][kChunk], const Vec four[kR], const uint64_t places[kR], const float* base,
                                  int step, int lane) {
  constexpr int kM = 1 << kBits, kWidthOf = kChunk * kWidth, kNextLane = kStrided ? 1 : kM;
  lane += kLane;
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
    const uint64_t ahead = places[r] >> (kBits * lane) & static_cast<uint64_t>((kM - 1) * step);
    const float* row = base + lane * kNextLane * kWidthOf + ahead * (kWidthOf / place_unit<kChunk, kStrided>());
    const Vec weight = broadcast_lane<kLane>(four[r]);
#pragma GCC unroll 16
    for (int c = 0; c < kChunk; c++) acc[r][c] = fmadd(weight, load(row + c * kWidth), acc[r][c]);
  }
}

// Rows whose weights were chosen in registers. A survivor's value row is found from its bits of the choice: the row
// address is base + (lane · M + place) · width, or base + (lane + place · stride) · width for groups with a stride,
// and only the place depends on data.
//
// Every product needs a fresh vector of values, so this runs at the speed of loads: kR rows at once keep enough sums
// in flight to hide the latency of the additions.
template <int kBits, int kChunk, bool kStrided, int kR>
DYNATTN_INLINE void sparse_rows(const Plan& plan, float* out, int64_t out_stride, const float* weights,
                                const uint32_t* choice, const float* value) {
  constexpr int kWidthOf = kChunk * kWidth, kSurvivors = kTile / 2, kWords = kSurvivors / kWidth;
  const int step = kStrided ? plan.stride * place_unit<kChunk, kStrided>() : 1;
  Vec acc[kR][kChunk];
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
    for (int c = 0; c < kChunk; c++) acc[r][c] = load(out + r * out_stride + c * kWidth);
  }
  for (int word = 0; word < kWords; word++) {
    const int first = (kBits == 1 ? word * 2 : word / 2 * 4) * kWidth;  // position of slot 0 in lane 0
    const float* base = value + (kStrided ? plan.value_of[first] : first * kWidthOf);
    uint64_t places[kR];
    for (int r = 0; r < kR; r++) places[r] = uint64_t{choice[r * kWords + word]} * static_cast<uint64_t>(step);
#pragma GCC unroll 16
    for (int lane = 0; lane < kWidth; lane += 4) {
      Vec four[kR];
#pragma GCC unroll 16
      for (int r = 0; r < kR; r++) four[r] = load_four(weights + r * kSurvivors + word * kWidth + lane);
      add_survivors<kBits, kChunk, kStrided, kR, 0>(acc, four, places, base, step, lane);
      add_survivors<kBits, kChunk, kStrided, kR, 1>(acc, four, places, base, step, lane);
      add_survivors<kBits, kChunk, kStrided, kR, 2>(acc, four, places, base, step, lane);
      add_survivors<kBits, kChunk, kStrided, kR, 3>(acc, four, places, base, step, lane);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
    for (int c = 0; c < kChunk; c++) store(out + r * out_stride + c * kWidth, acc[r][c]);
  }
}

// Rows at once: as many as divide the band and leave registers for weights and addresses.
constexpr int sparse_rows_at_once(int rows, int chunk) {
  int best = 1;
  for (int r = 2; r <= rows; r++) {
    if (rows % r == 0 && r * chunk <= 12) best = r;
  }
  return best;
}

template <int kR, int kBits, int kChunk, bool kStrided>
static void sparse_band(const Plan& plan, float* out, int64_t out_stride, const float* weights, const uint32_t* choice,
                        const float* value) {
  constexpr int kSurvivors = kTile / 2, kWords = kSurvivors / kWidth, kStep = sparse_rows_at_once(kR, kChunk);
  for (int r = 0; r < kR; r += kStep) {
    sparse_rows<kBits, kChunk, kStrided, kStep>(plan, out + r * out_stride, out_stride, weights + r * kSurvivors,
                                                choice + r * kWords, value);
  }
}

template <int kR, int kC>
DYNATTN_INLINE void load_columns(const float* out, int64_t out_stride, Vec acc[kR][kC]) {
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
    for (int c = 0; c < kC; c++) acc[r][c] = load(out + r * out_stride + c * kWidth);
  }
}

template <int kR, int kC>
DYNATTN_INLINE void store_columns(float* out, int64_t out_stride, const Vec acc[kR][kC]) {
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
    for (int c = 0; c < kC; c++) store(out + r * out_stride + c * kWidth, acc[r][c]);
  }
}

// Whether no sum is NaN or infinite.
template <int kR, int kC>
DYNATTN_INLINE bool are_finite(const Vec acc[kR][kC]) {
  Vec nan = zero();
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
    for (int c = 0; c < kC; c++) nan = fmadd(acc[r][c], zero(), nan);
  }
  const float any = reduce_add(nan);
  return any == any;
}

// Adds the positions [first, end) of a tile to kR rows × kC vectors of the output.
template <int kR, int kC>
DYNATTN_INLINE void add_positions(const Plan& plan, const float* weights, const float* value, int first, int end,
                                  Vec acc[kR][kC]) {
  for (int position = first; position < end; position++) {
    const float* row = value + plan.value_of[position];
    Vec b[kC];
#pragma GCC unroll 16
    for (int c = 0; c < kC; c++) b[c] = load(row + c * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
      const Vec weight = broadcast(weights[r * plan.tile + position]);
#pragma GCC unroll 16
      for (int c = 0; c < kC; c++) acc[r][c] = fmadd(weight, b[c], acc[r][c]);
    }
  }
}

// The same over all positions of a tile.
template <int kR, int kC>
DYNATTN_INLINE void dense_columns(const Plan& plan, float* out, int64_t out_stride, const float* weights,
                                  const float* value) {
  Vec acc[kR][kC];
  load_columns<kR, kC>(out, out_stride, acc);
  add_positions<kR, kC>(plan, weights, value, 0, plan.tile, acc);
  store_columns<kR, kC>(out, out_stride, acc);
}

// A band whose weights lie by position, zero where an entry is not kept.
template <int kR, int kV>
static void dense_band(const Plan& plan, float* out, int64_t out_stride, const float* weights, const float* value) {
  int c = 0;
  for (; c + kV <= plan.chunk; c += kV) {
    dense_columns<kR, kV>(plan, out + c * kWidth, out_stride, weights, value + c * kWidth);
  }
  if (kV > 2 && c + 2 <= plan.chunk) {
    dense_columns<kR, 2>(plan, out + c * kWidth, out_stride, weights, value + c * kWidth);
    c += 2;
  }
  if (c < plan.chunk) dense_columns<kR, 1>(plan, out + c * kWidth, out_stride, weights, value + c * kWidth);
}

// One row by position where values may be NaN or infinite: a weight below zero marks an entry that is not kept, and
// its value is not touched.
static void careful_row(const Plan& plan, float* out, const float* weights, const float* value) {
  for (int position = 0; position < plan.tile; position++) {
    if (weights[position] < 0.0f) continue;
    const float* row = value + plan.value_of[position];
    const Vec weight = broadcast(weights[position]);
    for (int c = 0; c < plan.chunk; c++) {
      store(out + c * kWidth, fmadd(weight, load(row + c * kWidth), load(out + c * kWidth)));
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
