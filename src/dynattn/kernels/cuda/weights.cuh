// From a tile's scores to the weights of the survivors, in a row of UNITS times 64 keys.
//
// In a tile that window or sinks touch, all keys of a group may be kept. The sparse product still does it, in two turns:
// the lower pair of every group is one 2:4 operand and the upper pair another, with constant metadata. No second path
// with another layout of V is needed, and two sparse products cost what one dense product does.
#pragma once

#include "softmax.cuh"

namespace dynattn {

// Both functions leave exponentiated weights, and say whether the base moved: then O is multiplied by `correction`. The
// sparse one also leaves the nibbles of this thread's own groups.
template <Pattern PATTERN, bool SUBTRACT_FIRST, bool AUX, int UNITS, int WORDS>
DYNATTN_DEVICE bool sparse_weights(const Scores (&s)[UNITS], RunningSoftmax& state, float factor, QuadLane quad,
                                   Survivors (&kept)[UNITS], u32 (&nibbles)[UNITS],
                                   HalfMetadata (&metadata)[UNITS][WORDS], float (&correction)[2]) {
  float largest[2] = {-INFINITY_F, -INFINITY_F};
#pragma unroll
  for (int unit = 0; unit < UNITS; ++unit) {
    nibbles[unit] = choose<PATTERN>(s[unit], kept[unit]);
#pragma unroll
    for (int word = 0; word < WORDS; ++word) {
      metadata[unit][word] = exchange(metadata_word<WORDS>(nibbles[unit], word), quad);
    }
    include_in_maximum(kept[unit], largest);
  }
  const bool moved = move_base(state, largest, factor, correction);
#pragma unroll
  for (int unit = 0; unit < UNITS; ++unit) {
    if constexpr (AUX) {
      Survivors dropped;
      dropped_scores<PATTERN>(s[unit], dropped);
      exponentiate<SUBTRACT_FIRST>(dropped, state, factor);
      add_weights(dropped, state.dropped_sum);
      count_allowed(s[unit], state);
      count_kept(kept[unit], state);
    }
    exponentiate<SUBTRACT_FIRST>(kept[unit], state, factor);
    add_weights(kept[unit], state.sum);
  }
  return moved;
}

// `pairs[0]` are the weights of the lower pairs of all groups, `pairs[1]` those of the upper; 0 where not kept.
template <Pattern PATTERN, bool SUBTRACT_FIRST, bool AUX, int STRIDE, int WORDS, int UNITS>
DYNATTN_DEVICE bool band_weights(const Scores (&s)[UNITS], RunningSoftmax& state, float factor,
                                 const ForwardParams& p, int query, int key0, int lane, Survivors (&pairs)[2][UNITS],
                                 float (&correction)[2]) {
  float largest[2] = {-INFINITY_F, -INFINITY_F};
  Survivors dropped[2][UNITS];
#pragma unroll
  for (int unit = 0; unit < UNITS; ++unit) {
    if constexpr (AUX) count_allowed(s[unit], state);
    split_by_choice_and_band<PATTERN, STRIDE, WORDS>(s[unit], p, query, key0 + UNIT_KEYS * unit, lane, pairs[0][unit],
                                                     pairs[1][unit], dropped[0][unit], dropped[1][unit]);
    include_in_maximum(pairs[0][unit], largest);
    include_in_maximum(pairs[1][unit], largest);
  }
  const bool moved = move_base(state, largest, factor, correction);
#pragma unroll
  for (int i = 0; i < 2 * UNITS; ++i) {
    Survivors& kept = pairs[i / UNITS][i % UNITS];
    if constexpr (AUX) {
      Survivors& others = dropped[i / UNITS][i % UNITS];
      exponentiate<SUBTRACT_FIRST>(others, state, factor);
      add_weights(others, state.dropped_sum);
      count_kept(kept, state);
    }
    exponentiate<SUBTRACT_FIRST>(kept, state, factor);
    add_weights(kept, state.sum);
  }
  return moved;
}

template <int FRAGMENTS>
DYNATTN_DEVICE void rescale(float (&o)[FRAGMENTS][4], const float (&correction)[2]) {
#pragma unroll
  for (int n = 0; n < FRAGMENTS; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) o[n][i] *= correction[i >> 1];
  }
}

}  // namespace dynattn
