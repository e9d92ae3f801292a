// A logsumexp in two numbers, for rows of which one number does not tell enough.
//
// A logsumexp is rounded to 24 bits, and with it all weights of its row: e to the power of that rounding is their
// common error. Where scores are near a mask of -1e9, nothing is left of the logarithm of their number, and weights
// relative to it are too large by that number. A backward then sums such a call's weights anew, as its forward did, and
// has what they are relative to and their sum each by itself.
#pragma once

#include <math.h>

#include "dynattn_cpu.h"
#include "simd/simd.h"

namespace dynattn {

struct RowSums {
  float* origin = nullptr;  // [batch, heads, q_len]: the score that weights are relative to, in the kernels' own unit
  float* sum = nullptr;     // likewise: of the weights that are kept; 0 where none is
};

// Magnitudes of a logsumexp up to which weights are off by 2^-18, where gradients are float32, and by 2^-14, where they
// are rounded to 8 or 11 bits in the end.
constexpr float kFineLogsumexp = 64.0f;
constexpr float kFineLogsumexpHalf = 1024.0f;

inline bool is_rough(float logsumexp, int32_t dtype) {
  const float size = fabsf(logsumexp);
  return size > (dtype == DYNATTN_FLOAT32 ? kFineLogsumexp : kFineLogsumexpHalf) && size < INFINITY;
}

}  // namespace dynattn

namespace dynattn::DYNATTN_NAMESPACE {

// Fills `sums` for a call with at least one query, of which inputs, masks, blocks and thresholds are read. The choice
// and the scores are those of the forward that a gradient follows.
int32_t sum_rows(const NMForwardArgs& args, const RowSums& sums);

}  // namespace dynattn::DYNATTN_NAMESPACE
