// What linear layers share: how many threads they are worth, their inputs, and their results.
#pragma once

#include "common/arena.h"
#include "common/team.h"
#include "linear/weights.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Threads for reading so many weights in so many tasks. It is the weights' way from memory that takes the time, and not
// their arithmetic, by which useful_threads() counts.
static int reading_threads(const LinearArgs& args, int64_t weights, int64_t tasks) {
  constexpr int64_t kSmallBytes = 128 << 10;
  const int64_t bytes = weights * (args.weight_dtype == DYNATTN_FLOAT32 ? 4 : args.weight_dtype == DYNATTN_INT8 ? 1 : 2);
  if (bytes < kSmallBytes) return 1;
  return static_cast<int>(larger<int64_t>(1, smaller<int64_t>(most_threads(args.threads), tasks)));
}

// Input `i` of a token as float32.
DYNATTN_INLINE float input_of(const LinearArgs& args, int64_t token, int64_t i) {
  const int64_t at = token * args.inputs + i;
  return args.dtype == DYNATTN_FLOAT32 ? static_cast<const float*>(args.x)[at]
                                       : from_bfloat16(static_cast<const uint16_t*>(args.x)[at]);
}

// Writes a token's outputs from `first` on, whose sums are given: scaled, with the bias, rounded once. `sums` and
// `other`, of the same length, are overwritten.
DYNATTN_INLINE void write_outputs(const LinearArgs& args, int64_t token, int64_t first, int64_t count, float* sums, float* other) {
  if (args.scale != nullptr) {
    for (int64_t j = 0; j < count; j++) sums[j] *= args.scale[first + j];
  }
  if (args.bias != nullptr) {
    to_floats(other, element(args.bias, first, args.dtype), args.dtype, count);
    for (int64_t j = 0; j < count; j++) sums[j] += other[j];
  }
  from_floats(const_cast<char*>(element(args.out, token * args.outputs + first, args.dtype)), sums, args.dtype, count);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
