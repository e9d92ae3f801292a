// What each instruction set's build of the kernels offers.
#pragma once

#include "common/texts.h"
#include "dynattn_cpu.h"

#define DYNATTN_DECLARE(isa)                                                            \
  namespace dynattn::isa {                                                              \
  int32_t nm_forward(const NMForwardArgs& args);                                        \
  int32_t nm_texts(const Text* texts, int64_t count);                                   \
  int32_t row_forward(const RowForwardArgs& args);                                      \
  int32_t skip_forward(const SkipForwardArgs& args);                                    \
  /* The same for one query, without gradient and dropout: keys are read in place. */   \
  int32_t skip_one_query(const SkipForwardArgs& args);                                  \
  int32_t choose_blocks(const BlockForwardArgs& args);                                  \
  int32_t nm_backward(const NMBackwardArgs& args);                                      \
  int32_t linear_choice(const LinearArgs& args);                                        \
  int32_t linear_rows(const LinearArgs& args);                                          \
  int32_t linear_outputs(const LinearArgs& args);                                       \
  int32_t linear_nm_weight(const LinearArgs& args);                                     \
  /* Runs `rounds` rounds of independent multiply-adds; returns how many operations. */ \
  double fma_chains(int64_t rounds);                                                    \
  }

DYNATTN_DECLARE(portable)
DYNATTN_DECLARE(avx2)
DYNATTN_DECLARE(avx512)
DYNATTN_DECLARE(neon)

// For AVX-512 with products of pairs of bfloat16 numbers: N:M attention, rows that choose by their own scores, and one
// query that skips.
namespace dynattn::avx512_pairs {
int32_t nm_forward(const NMForwardArgs& args);
int32_t nm_texts(const Text* texts, int64_t count);
int32_t row_forward(const RowForwardArgs& args);
int32_t skip_one_query(const SkipForwardArgs& args);
}  // namespace dynattn::avx512_pairs

// The tile kernels, one build for each engine: bfloat16 alone.
#define DYNATTN_DECLARE_TILES(engine)                                      \
  namespace dynattn::engine {                                              \
  int32_t nm_forward(const NMForwardArgs& args);                           \
  int32_t row_forward(const RowForwardArgs& args);                         \
  int32_t skip_forward(const SkipForwardArgs& args);                       \
  int32_t nm_backward(const NMBackwardArgs& args);                         \
  /* As TileKernels of tiles/self_check.h has it. */                       \
  void multiply(const void* a, const void* b, int64_t steps, float* sums); \
  }

DYNATTN_DECLARE_TILES(tiles_portable)
DYNATTN_DECLARE_TILES(tiles_avx512bf16)
DYNATTN_DECLARE_TILES(tiles_amx)

#undef DYNATTN_DECLARE_TILES
#undef DYNATTN_DECLARE
