// The end of both kernels: a warp's 16 rows of O, divided by their sums, and the rows' figures.
#pragma once

#include "careful.cuh"
#include "row_sums.cuh"

namespace dynattn {

// Writes the rows from `first_query` on, times the factor of the weights that dropout leaves. Returns a bit for each row
// into which a value leaked (careful.cuh).
template <class Element, bool AUX, bool DROPOUT, int FRAGMENTS>
DYNATTN_DEVICE u32 write_rows(const ForwardParams& p, const Place& place, const RunningSoftmax& state,
                              const float (&o)[FRAGMENTS][4], int first_query, int tile, float score_scale, int lane) {
  RunningSoftmax total = state;
  bool leaked[2] = {false, false};
  using Raw = typename Format<Element>::Raw;
  Raw* out = rows_of(static_cast<Raw*>(p.out), p.out_strides, place.batch, place.head);
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    total.sum[row] = sum_of_quad(state.sum[row]);
    if constexpr (AUX) {
      total.dropped_sum[row] = sum_of_quad(state.dropped_sum[row]);
      total.kept[row] = sum_of_quad(state.kept[row]);
      total.allowed[row] = sum_of_quad(state.allowed[row]);
    }
    const int query = first_query + (lane >> 2) + 8 * row;
    if (query >= p.q_len) continue;
    const float sum = total.sum[row], whole = DROPOUT ? p.keep_factor : 1.0f;
    const float inverse = sum == 0.0f ? 0.0f : whole / sum;
#pragma unroll
    for (int n = 0; n < FRAGMENTS; ++n) {
      const float low = o[n][2 * row] * inverse, high = o[n][2 * row + 1] * inverse;
      const int column = 8 * n + 2 * (lane & 3);
      if (column >= p.value_dim) continue;
      leaked[row] = leaked[row] || low != low || high != high;
      Format<Element>::store(out + query * p.out_strides[2] + column, low, high);
    }
    leaked[row] = leaked[row] && sum == sum;
    if ((lane & 3) == 0) {
      write_row_figures<AUX>(p, total, row, place.row0 + query - place.first_query, score_scale);
    }
  }
  return leaked_bits(leaked, tile);
}

}  // namespace dynattn
