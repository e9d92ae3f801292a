// A logsumexp in two numbers, for rows of which one number does not tell enough.
//
// A logsumexp is rounded to 24 bits, and with it all weights of its row: e to the power of that rounding is their
// common error. Where scores are near a mask of -1e9, nothing is left of the logarithm of their number, and weights
// relative to it are too large by that number. So a backward launches the forward's own kernel once more, with
// `row_sums`: blocks that hold such a row walk over their keys again and leave both numbers, the others end at once.
// Nothing else is written.
#pragma once

#include "softmax.cuh"

namespace dynattn {

// The magnitude of a logsumexp up to which weights are off by 2^-14: they are rounded to 8 or 11 bits in the end.
constexpr float FINE_LOGSUMEXP = 1024.0f;

DYNATTN_DEVICE bool is_rough(float logsumexp) {
  const float size = maximum(logsumexp, -logsumexp);
  return size > FINE_LOGSUMEXP && size < INFINITY_F;
}

// Whether a block of `queries` has something to do; every warp of it finds the same.
DYNATTN_DEVICE bool is_wanted(const ForwardParams& p, const Place& place, int queries, int lane) {
  if (p.row_sums == nullptr) return true;
  bool rough = false;
  for (int row = lane; row < queries && place.first_query + row < p.q_len; row += 32) {
    rough = rough || is_rough(p.logsumexp[place.row0 + row]);
  }
  return ballot(rough) != 0;
}

// A warp's 16 rows from `first_query` on.
DYNATTN_DEVICE void write_row_sums(const ForwardParams& p, const Place& place, const RunningSoftmax& state,
                                   int first_query, int lane) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float sum = sum_of_quad(state.sum[row]);
    const int query = first_query + (lane >> 2) + 8 * row;
    if (query >= p.q_len || (lane & 3) != 0) continue;
    p.row_sums[place.row0 + query - place.first_query] = {state.base[row], sum};
  }
}

}  // namespace dynattn
