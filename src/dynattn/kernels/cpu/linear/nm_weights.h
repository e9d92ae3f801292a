// Products with N:M weights in packed form, for a few tokens: of M inputs in a row the N that have a weight.
//
// A row is stored in blocks of DYNATTN_NM_GROUPS groups. A block holds its groups' first weights, then their second ones,
// up to the N-th: a slot each. A slot's places are 16 bits for M = 2, one a group, and 32 for M = 4, the low bits of all
// groups before the high ones. So a vector of weights belongs to as many groups, and its inputs are picked lane by lane
// from M vectors, which hold the groups' first inputs, their second ones, and so on.
#pragma once

#include "linear/outputs.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kGroups = DYNATTN_NM_GROUPS;

// acc[r][t] += the weights of kWidth groups of a slot, from the group kPart on, times the inputs at their places. Their
// bits begin at kFirst of the word; `x[t]` points to the block's inputs.
template <class Weights, int kM, int kRows, int kTokens, int kFirst, int kPart>
DYNATTN_INLINE void add_picked(const typename Weights::Element* const w[kRows], const uint32_t words[kRows],
                               const float* const* x, int64_t slot, int64_t block, Vec acc[kRows][kTokens]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
    const Vec b = Weights::load(w[r] + slot * kGroups + kPart);
    const Mask low = mask_at<kFirst + kPart>(words[r]);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      const float* group = x[t] + block * (kM * kGroups) + kPart;
      Vec a = select(low, load(group + kGroups), load(group));
      if constexpr (kM == 4) {
        const Mask high = mask_at<kGroups + kPart>(words[r]);
        a = select(high, select(low, load(group + 3 * kGroups), load(group + 2 * kGroups)), a);
      }
      acc[r][t] = fmadd(a, b, acc[r][t]);
    }
  }
}

// A whole slot, whose bits begin at kFirst of the word at `at` of each row.
template <class Weights, int kM, int kRows, int kTokens, int kFirst>
DYNATTN_INLINE void add_slot(const typename Weights::Element* const w[kRows], const uint32_t* const places[kRows],
                             int64_t at, const float* const* x, int64_t slot, int64_t block,
                             Vec acc[2][kRows][kTokens]) {
  uint32_t words[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) words[r] = places[r][at];
  add_picked<Weights, kM, kRows, kTokens, kFirst, 0>(w, words, x, slot, block, acc[0]);
  if constexpr (kWidth < 16) add_picked<Weights, kM, kRows, kTokens, kFirst, 8 % kGroups>(w, words, x, slot, block, acc[1]);
  if constexpr (kWidth < 8) {
    add_picked<Weights, kM, kRows, kTokens, kFirst, 4>(w, words, x, slot, block, acc[0]);
    add_picked<Weights, kM, kRows, kTokens, kFirst, 12>(w, words, x, slot, block, acc[1]);
  }
}

// Rows in packed form, for kM = 2 or 4.
template <class Weights, int kM>
struct NMRows {
  using Element = typename Weights::Element;
  const Element* values;
  const uint32_t* places;
  int64_t blocks, n;

  int64_t width() const { return blocks * n * kGroups; }
  int64_t words() const { return kM == 2 ? ceil_div(blocks, 2) : blocks * n; }

  template <int kRows, int kTokens>
  void multiply(const int32_t* outputs, const int32_t* next, const float* const* x, float sums[kRows][kTokens]) const {
    const Element *w[kRows], *ahead[kRows];
    const uint32_t* place[kRows];
    Vec acc[2][kRows][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      w[r] = values + outputs[r] * width(), ahead[r] = values + next[r] * width();
      place[r] = places + outputs[r] * words();
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) acc[0][r][t] = acc[1][r][t] = zero();
    }
    if constexpr (kM == 2) {  // one slot a block, and two of them a word
      int64_t block = 0;
      for (; block + 2 <= blocks; block += 2) {
        prefetch<kRows>(ahead, block), prefetch<kRows>(ahead, block + 1);
        add_slot<Weights, kM, kRows, kTokens, 0>(w, place, block / 2, x, block, block, acc);
        add_slot<Weights, kM, kRows, kTokens, kGroups>(w, place, block / 2, x, block + 1, block + 1, acc);
      }
      if (block < blocks) add_slot<Weights, kM, kRows, kTokens, 0>(w, place, block / 2, x, block, block, acc);
    } else {
      int64_t slot = 0;
      for (int64_t block = 0; block < blocks; block++) {
        for (const int64_t end = slot + n; slot < end; slot++) {
          prefetch<kRows>(ahead, slot);
          add_slot<Weights, kM, kRows, kTokens, 0>(w, place, slot, x, slot, block, acc);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) sums[r][t] = reduce_add(add(acc[0][r][t], acc[1][r][t]));
    }
  }

  template <int kRows>
  static void prefetch(const Element* const ahead[kRows], int64_t slot) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) __builtin_prefetch(ahead[r] + slot * kGroups);
  }
};

template <class Weights, int kM>
static int32_t run_nm(const LinearArgs& args) {
  const int64_t blocks = ceil_div(args.inputs, kM * kGroups), width = blocks * kM * kGroups;
  const NMRows<Weights, kM> rows = {static_cast<const typename Weights::Element*>(args.weight), args.places, blocks,
                                    args.n};
  return run_rows_of_outputs(args, rows, width, blocks * args.n * kGroups, [&](int64_t token, float* to) {
    for (int64_t i = 0; i < width; i++) {
      const int64_t block = i / (kM * kGroups), group = i % (kM * kGroups) / kM, member = i % kM;
      to[(block * kM + member) * kGroups + group] = i < args.inputs ? input_of(args, token, i) : 0.0f;
    }
  });
}

template <class Weights>
static int32_t run_nm(const LinearArgs& args) {
  return args.m == 2 ? run_nm<Weights, 2>(args) : run_nm<Weights, 4>(args);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
