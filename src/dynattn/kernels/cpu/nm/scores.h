// Scores: products of a band of packed queries with a tile of packed keys, and the choice among them.
#pragma once

#include "common/products.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Where the scores of one band and tile go, and the bias that is added to them.
struct ScoreTile {
  float* scores;
  int64_t stride;    // between rows, where all scores are stored
  uint32_t* choice;  // survivors' places in their groups, a word for each vector of survivors
  const float* bias;
  int64_t bias_stride;  // between rows; 0 where all rows see the same
};

// The larger of each pair; a bit says where it was the second. Ties go to the first.
DYNATTN_INLINE void choose_one_of_two(const Vec pair[2], float* survivors, uint32_t* choice) {
  store(survivors, max(pair[0], pair[1]));
  choice[0] = bits(greater(pair[1], pair[0]));
}

// Two bits a lane from one bit a lane of each argument: …h1 l1 h0 l0.
DYNATTN_INLINE uint32_t interleave(uint32_t low, uint32_t high) {
  uint64_t x = low | uint64_t{high} << 32;
  if (kWidth > 8) x = (x | x << 8) & 0x00ff00ff00ff00ffu;
  if (kWidth > 4) x = (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
  x = (x | x << 2) & 0x3333333333333333u;
  x = (x | x << 1) & 0x5555555555555555u;
  return static_cast<uint32_t>(x) | static_cast<uint32_t>(x >> 32) << 1;
}

// The two largest of each four, as a tournament: the winner of the pairs' winners, then the better of what is left
// of its own pair (the pair's loser) and the other pair's winner. Ties go to the lower index at every step.
DYNATTN_INLINE void choose_two_of_four(const Vec four[4], float* survivors, uint32_t* choice) {
  const Mask odd_low = greater(four[1], four[0]), odd_high = greater(four[3], four[2]);
  const Vec best_low = max(four[0], four[1]), rest_low = min(four[0], four[1]);
  const Vec best_high = max(four[2], four[3]), rest_high = min(four[2], four[3]);
  const Mask high = greater(best_high, best_low);
  const Vec left_low = select(high, best_low, rest_low), left_high = select(high, rest_high, best_high);
  const Mask second_high = greater(left_high, left_low);
  store(survivors, max(best_low, best_high));
  store(survivors + kWidth, max(left_low, left_high));

  // The index's low bit is that of its pair's winner, or the other when the pair's loser is meant.
  const uint32_t a = bits(odd_low), b = bits(odd_high), h = bits(high), s = bits(second_high);
  constexpr uint32_t all = (uint32_t{1} << kWidth) - 1;
  choice[0] = interleave((a & ~h) | (b & h), h);
  choice[1] = interleave((~(a ^ h) & ~s & all) | ((b ^ h) & s), s);
}

// Scores of one band and tile. kBiased: a bias is added. kChosen: N:M survivors and choice words are stored, the
// survivors of a row kTile / 2 behind those of the row before; otherwise all scores are, by position.
template <int kR, int kV, bool kBiased, bool kChosen>
static void score_band(const Plan& plan, const float* query, const float* key, const ScoreTile& to) {
  constexpr int kPanelKeys = kV * kWidth;
  const int panels = plan.tile / kPanelKeys;
  const Vec multiplier = broadcast(plan.multiplier);
  for (int panel = 0; panel < panels; panel++) {
    Vec acc[kR][kV];
    multiply<kR, kV>(query, key + int64_t{panel} * kPanelKeys * plan.args->head_dim, plan.args->head_dim, acc);
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
      if (kBiased) {
        const float* bias = to.bias + r * to.bias_stride + panel * kPanelKeys;
        for (int v = 0; v < kV; v++) acc[r][v] = fmadd(acc[r][v], multiplier, load(bias + v * kWidth));
      }
      if constexpr (kChosen && kV == kPanel) {
        constexpr int kWords = kTile / 2 / kWidth;
        choose_one_of_two(acc[r], to.scores + r * (kTile / 2) + panel * kWidth, to.choice + r * kWords + panel);
      } else if constexpr (kChosen && kV == kPanelWide) {
        constexpr int kWords = kTile / 2 / kWidth;
        choose_two_of_four(acc[r], to.scores + r * (kTile / 2) + panel * 2 * kWidth,
                           to.choice + r * kWords + panel * 2);
      } else {
        float* scores = to.scores + r * to.stride + panel * kPanelKeys;
        for (int v = 0; v < kV; v++) store(scores + v * kWidth, acc[r][v]);
      }
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
