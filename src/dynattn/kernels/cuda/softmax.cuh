// The running softmax of a warp's 16 queries, over kept scores only, and what is written at its end.
//
//     after each tile:  base = an earlier or the present row maximum,   sum = Σ 2^((s - base) · factor),
//                       O = Σ 2^((s - base) · factor) V
//
// The base follows the maximum lazily: only when some row of the warp has grown by more than 2^8 are O and the sums
// rescaled, which takes most of the rescaling out of the loop. Weights then stay below 2^8, harmless in either element
// type, and the result does not depend on the base.
#pragma once

#include "mask.cuh"

namespace dynattn {

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
constexpr float LAZY_LOG2 = 8.0f;
constexpr float FINE_LOG2 = 1 << 20;  // exponents up to which a base's own rounds by less than 2^-4

// What a thread holds: rows g and g + 8. Its sums run over its own keys until the end, when the quad adds them up.
struct RunningSoftmax {
  float base[2] = {-INFINITY_F, -INFINITY_F};
  float sum[2] = {0.0f, 0.0f};
  float dropped_sum[2] = {0.0f, 0.0f};
  int kept[2] = {0, 0}, allowed[2] = {0, 0};
};

// The largest score of each row. NaN is passed over, since it reaches the result by its weight.
DYNATTN_DEVICE void include_in_maximum(const Survivors& s, float (&largest)[2]) {
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      largest[row] = maximum(largest[row], maximum(s[chunk][row][0], s[chunk][row][1]));
    }
  }
}

// Moves the base to the tile's maximum where it must, and says whether it did (the same for the whole warp); the
// caller then multiplies row r of O by correction[r].
DYNATTN_DEVICE bool move_base(RunningSoftmax& state, float (&largest)[2], float factor, float (&correction)[2]) {
  bool grew = false;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    largest[row] = maximum(largest[row], shuffle_xor(largest[row], 1));
    largest[row] = maximum(largest[row], shuffle_xor(largest[row], 2));
    grew = grew || (largest[row] - state.base[row]) * factor > LAZY_LOG2;  // -inf - -inf is NaN: not larger
  }
  if (!ballot(grew)) return false;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float base = maximum(state.base[row], largest[row]);
    correction[row] = base == -INFINITY_F ? 1.0f : exp2_fast((state.base[row] - base) * factor);
    state.base[row] = base;
    state.sum[row] *= correction[row];
    state.dropped_sum[row] *= correction[row];
  }
  return true;
}

// Scores become 2^((s - base) · factor), 0 for -inf. One fused multiply-add does it, with the base's exponent. But that is
// rounded, and a large one by so much that all weights overflow or vanish: there the base is subtracted first, and always
// where biases are added, so that scores may be of any size up to the largest float.
template <bool SUBTRACT_FIRST>
DYNATTN_DEVICE void exponentiate(Survivors& s, const RunningSoftmax& state, float factor) {
  float base[2], exponent[2];
  bool subtracts = SUBTRACT_FIRST;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    base[row] = state.base[row] == -INFINITY_F ? 0.0f : state.base[row];  // nothing kept so far: s is -inf too, or NaN
    exponent[row] = base[row] * factor;
    subtracts = subtracts || maximum(exponent[row], -exponent[row]) > FINE_LOG2;
  }
  if (subtracts) {
#pragma unroll
    for (int i = 0; i < 16; ++i) s[i >> 2][(i >> 1) & 1][i & 1] -= base[(i >> 1) & 1];
    exponent[0] = exponent[1] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    float& x = s[i >> 2][(i >> 1) & 1][i & 1];
    x = exp2_fast(multiply_add(x, factor, -exponent[(i >> 1) & 1]));
  }
}

DYNATTN_DEVICE void add_weights(const Survivors& weights, float (&sum)[2]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) sum[(i >> 1) & 1] += weights[i >> 2][(i >> 1) & 1][i & 1];
}

DYNATTN_DEVICE void count_allowed(const Scores& s, RunningSoftmax& state) {
#pragma unroll
  for (int i = 0; i < 32; ++i) state.allowed[(i >> 1) & 1] += s[i >> 4][(i >> 2) & 3][i & 3] != -INFINITY_F;
}
DYNATTN_DEVICE void count_kept(const Survivors& s, RunningSoftmax& state) {
#pragma unroll
  for (int i = 0; i < 16; ++i) state.kept[(i >> 1) & 1] += s[i >> 2][(i >> 1) & 1][i & 1] != -INFINITY_F;
}

template <class T>
DYNATTN_DEVICE T sum_of_quad(T x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// Row `index` of the arrays [batch, heads, q_len]; `score_scale` turns what was summed into scores. An empty row has
// logsumexp -inf and kept mass 1.
template <bool AUX>
DYNATTN_DEVICE void write_row_figures(const ForwardParams& p, const RunningSoftmax& total, int row, long long index,
                                      float score_scale) {
  const float sum = total.sum[row];
  p.logsumexp[index] = sum == 0.0f ? -INFINITY_F : total.base[row] * score_scale + log2_fast(sum) * LN_2;
  if constexpr (AUX) {
    p.kept_mass[index] = sum == 0.0f ? 1.0f : sum / (sum + total.dropped_sum[row]);
    p.kept[index] = total.kept[row];
    p.allowed[index] = total.allowed[row];
  }
}

}  // namespace dynattn
