// Products with N:M weights in packed form, for a few tokens: of M inputs in a row the N that have a weight.
//
// A row is stored in blocks of DYNATTN_NM_GROUPS groups. A block holds its groups' first weights, then their second ones,
// up to the N-th; and a word for each bit of the places of each of these, a bit a group. So a vector of weights belongs to
// as many groups, and its inputs are picked lane by lane from M vectors, which hold the groups' first inputs, their
// second ones, and so on.
#pragma once

#include "linear/outputs.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kGroups = DYNATTN_NM_GROUPS;

// acc[r][t] += the kept weights of slot `slot`, of kWidth groups from `part` on, times the inputs at their places. `x[t]`
// points to the block's inputs.
template <class Weights, int kM, int kRows, int kTokens>
DYNATTN_INLINE void accumulate_picked(const typename Weights::Element* const w[kRows],
                                      const uint16_t* const place[kRows], const float* const* x, int64_t block,
                                      int64_t slot, int part, Vec acc[kRows][kTokens]) {
  constexpr int kPlanes = kM / 2;  // bits of a place
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
    const Vec b = Weights::load(w[r] + slot * kGroups + part);
    const Mask low = mask_of(uint32_t{place[r][slot * kPlanes]} >> part);
    const Mask high = mask_of(uint32_t{place[r][slot * kPlanes + kPlanes - 1]} >> part);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      const float* group = x[t] + block * (kM * kGroups) + part;
      Vec a = select(low, load(group + kGroups), load(group));
      if constexpr (kM == 4) a = select(high, select(low, load(group + 3 * kGroups), load(group + 2 * kGroups)), a);
      acc[r][t] = fmadd(a, b, acc[r][t]);
    }
  }
}

// Rows in packed form, for kM = 2 or 4.
template <class Weights, int kM>
struct NMRows {
  using Element = typename Weights::Element;
  const Element* values;
  const uint16_t* places;
  int64_t blocks, n;

  template <int kRows, int kTokens>
  void multiply(const int32_t* outputs, const float* const* x, float sums[kRows][kTokens]) const {
    const Element* w[kRows];
    const uint16_t* place[kRows];
    Vec acc[2][kRows][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      w[r] = values + outputs[r] * blocks * n * kGroups, place[r] = places + outputs[r] * blocks * n * (kM / 2);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) acc[0][r][t] = acc[1][r][t] = zero();
    }
    int64_t slot = 0;
    for (int64_t block = 0; block < blocks; block++) {
      for (const int64_t end = slot + n; slot < end; slot++) {
#pragma GCC unroll 4
        for (int part = 0; part < kGroups; part += kWidth) {
          accumulate_picked<Weights, kM, kRows, kTokens>(w, place, x, block, slot, part, acc[part / kWidth % 2]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) sums[r][t] = reduce_add(add(acc[0][r][t], acc[1][r][t]));
    }
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
