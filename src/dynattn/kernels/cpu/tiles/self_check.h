// Whether a tile engine computes on this very processor what the portable engine computes.
#pragma once

#include "dynattn_cpu.h"

namespace dynattn {

// One engine's build of the tile kernels.
struct TileKernels {
  int32_t (*nm_forward)(const NMForwardArgs& args);
  int32_t (*nm_backward)(const NMBackwardArgs& args);
  // sums[32][32] += A[32][32 · steps] · B, whose steps are two tiles of 16 columns, each 16 rows of pairs.
  void (*multiply)(const void* a, const void* b, int64_t steps, float* sums);
};

// What `engine` computes otherwise than `portable` does, in words; NULL where they agree. Products must have the same
// bits, or, where the engine sums in another order, differ by rounding alone. Attention and its
// gradients may differ by the rounding of weights. Takes some hundredths of a second, on one thread.
const char* tile_disagreement(const TileKernels& engine, const TileKernels& portable, bool same_bits);

}  // namespace dynattn
