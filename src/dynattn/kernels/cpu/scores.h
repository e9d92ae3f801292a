// Scores: products of a group of packed queries with a tile of packed keys, and the choice among them.
#pragma once

#include "plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Where a group's scores go. `bias` has rows `bias_stride` apart (0: one row for all).
struct ScoreTile {
  float* scores;
  uint32_t* choice;  // survivors' places in their groups, a word for each vector of survivors
  const float* bias;
  int64_t bias_stride;
};

// acc[r][v] = Σ_k query[k][r] · key[k][v]: each key vector is loaded once for all rows, each query broadcast.
template <int kR, int kV>
DYNATTN_INLINE void multiply(const float* query, const float* key, int64_t head_dim, Vec acc[kR][kV]) {
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; v++) acc[r][v] = zero();
  }
  for (int64_t k = 0; k < head_dim; k++) {
    Vec b[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; v++) b[v] = load(key + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
      const Vec a = broadcast(query[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; v++) acc[r][v] = fmadd(a, b[v], acc[r][v]);
    }
    query += kR;
    key += kV * kWidth;
  }
}

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

// The even bits of a word, side by side: what interleave() took as `low`.
DYNATTN_INLINE uint32_t even_bits(uint32_t word) {
  uint32_t x = word & 0x55555555u;
  x = (x | x >> 1) & 0x33333333u;
  x = (x | x >> 2) & 0x0f0f0f0fu;
  if (kWidth > 4) x = (x | x >> 4) & 0x00ff00ffu;
  if (kWidth > 8) x = (x | x >> 8) & 0x0000ffffu;
  return x;
}

// Of the members of kWidth groups of 2^kBits keys, the one whose place the word has: other products of those pairs.
template <int kBits>
DYNATTN_INLINE Vec pick(const Vec members[1 << kBits], uint32_t word) {
  if (kBits == 1) return select(mask_of(word), members[1], members[0]);
  const Mask low = mask_of(even_bits(word)), high = mask_of(even_bits(word >> 1));
  return select(high, select(low, members[3 % (1 << kBits)], members[2 % (1 << kBits)]),
                select(low, members[1], members[0]));
}

// Where truth values have registers of their own, a blend before a multiply-add costs less than a second one.
constexpr bool kPicksFirst = kRegisters == 32;
constexpr int kPickedRows = 6;  // at once: as many as there are mask registers, and a divisor of kRows

// acc[r] = Σ_k query[k][r] · key[k][the chosen of each pair]: as multiply() and pick<1>(), with half of the products.
template <int kR>
DYNATTN_INLINE void multiply_picked(const float* query, int64_t query_stride, const float* key, int64_t head_dim,
                                    const uint32_t* words, int64_t word_stride, Vec acc[kR]) {
  Mask second[kR];
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
    second[r] = mask_of(words[r * word_stride]);
    acc[r] = zero();
  }
  for (int64_t k = 0; k < head_dim; k++) {
    const Vec a = load(key), b = load(key + kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) acc[r] = fmadd(broadcast(query[r]), select(second[r], b, a), acc[r]);
    query += query_stride;
    key += 2 * kWidth;
  }
}

// Scores of one group and tile. kBiased: bias is added. kChosen: N:M survivors and choice words are stored, survivors
// of a row kTile / 2 apart; otherwise all scores, by position, `tile` apart.
template <int kR, int kV, bool kBiased, bool kChosen>
static void score_group(const Plan& plan, const float* query, const float* key, const ScoreTile& to) {
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
        float* scores = to.scores + int64_t{r} * plan.tile + panel * kPanelKeys;
        for (int v = 0; v < kV; v++) store(scores + v * kWidth, acc[r][v]);
      }
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
