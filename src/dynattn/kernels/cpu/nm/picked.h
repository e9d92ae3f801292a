// Picks other products of the kept pairs out of a tile's groups, by the choice words of the forward.
#pragma once

#include "common/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// The even bits of a word, side by side: what interleave() took as `low`.
DYNATTN_INLINE uint32_t even_bits(uint32_t word) {
  uint32_t x = word & 0x55555555u;
  x = (x | x >> 1) & 0x33333333u;
  x = (x | x >> 2) & 0x0f0f0f0fu;
  if (kWidth > 4) x = (x | x >> 4) & 0x00ff00ffu;
  if (kWidth > 8) x = (x | x >> 8) & 0x0000ffffu;
  return x;
}

// Lane by lane, the member of a group of 2^kBits keys whose place is in the word.
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

// acc[r] = Σ_k query[k][r] · key[k][the chosen of each pair]: what multiply() and pick<1>() give, with half of the
// products.
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

}  // namespace dynattn::DYNATTN_NAMESPACE
