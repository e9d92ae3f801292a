// The C interface of dynattn's CPU kernels: plain pointers, strides and tags.
//
// No torch headers, no Python headers: one shared library serves every Python and
// every torch. kernels/cpu/__init__.py mirrors NMForwardArgs with ctypes; change both together.
#pragma once

#include <stdint.h>

#define DYNATTN_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum { DYNATTN_FLOAT32 = 0, DYNATTN_BFLOAT16 = 1, DYNATTN_FLOAT16 = 2, DYNATTN_BOOL = 3 };

enum { DYNATTN_OK = 0, DYNATTN_UNSUPPORTED_ISA = 1, DYNATTN_OUT_OF_MEMORY = 2, DYNATTN_BAD_ARGUMENT = 3 };

// The last three are engines of the tile kernels, which take bfloat16 and compute dynattn_nm_forward alone.
enum {
  DYNATTN_ISA_PORTABLE = 0,
  DYNATTN_ISA_AVX2 = 1,
  DYNATTN_ISA_AVX512 = 2,
  DYNATTN_ISA_TILES_PORTABLE = 3,
  DYNATTN_ISA_AVX512BF16 = 4,
  DYNATTN_ISA_AMX = 5
};

// GOMP_parallel of the OpenMP runtime that torch has already loaded, so that both share one pool of threads.
typedef void (*dynattn_parallel_fn)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// N:M attention, forward. Strides count elements; the last dimension of every tensor is contiguous,
// except the mask's, whose strides may all be 0 (broadcast). A stride of 0 is valid anywhere on an input.
typedef struct {
  const void* query;  // [batch, heads, q_len, head_dim]
  const void* key;    // [batch, kv_heads, kv_len, head_dim]
  const void* value;  // [batch, kv_heads, kv_len, value_dim]
  const void* mask;   // [batch, heads, q_len, kv_len] seen through its strides, or NULL
  void* out;          // [batch, heads, q_len, value_dim], in dtype
  float* logsumexp;   // [batch, heads, q_len] contiguous, natural log, over kept entries
  float* kept_mass;   // [batch, heads, q_len] contiguous, or NULL when not asked for
  int32_t* kept;      // [batch, heads, q_len] contiguous: pairs kept, or NULL (all three go together)
  int32_t* allowed;   // [batch, heads, q_len] contiguous: pairs allowed, or NULL
  // [batch, heads, ceil(q_len / cell), ceil(kv_len / cell)] contiguous: 0 where all pairs of a square of queries and
  // keys are forbidden, before anything is chosen; or NULL
  const uint8_t* cells;
  // Of rows that choose by their scores (dynattn_row_forward): a score, in the kernels' own unit, that the kept ones
  // reach and no others, and the last key kept of those that equal it; [batch, heads, q_len] contiguous, or NULL in N:M
  // attention.
  float* least;
  int32_t* last;

  int64_t query_strides[3];  // batch, head, length
  int64_t key_strides[3];
  int64_t value_strides[3];
  int64_t out_strides[3];
  int64_t mask_strides[4];  // batch, head, query, key

  int64_t batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim;

  dynattn_parallel_fn parallel;  // NULL: the kernel starts its own std::thread team

  uint64_t seed;  // of dropout

  float scale;
  int32_t dtype;       // of query, key, value and out: float32, bfloat16 or float16
  int32_t mask_dtype;  // bool (true = may be attended) or float32/bfloat16/float16 (added to the scores)
  int32_t n, m;
  int32_t window, sinks;
  int32_t stride;       // between the members of a group; m · stride is at most 256
  int32_t causal;       // bottom-right aligned: key j is allowed for query i when j <= i + kv_len - q_len
  int32_t isa;          // one of DYNATTN_ISA_*
  int32_t threads;      // at most this many
  int32_t needs_grad;   // the scores must round as the backward's will: nothing is taken by the path for few queries
  int32_t cell;         // side of the squares, between 1 and 1024, where there are any
  uint32_t drop_below;  // of 2^32: probability that a kept weight is dropped; 0 for no dropout
  float keep_factor;    // of the weights that are not
  // where these tensors begin among those of a call that runs in parts: dropout draws by batch and head of the whole
  int32_t first_batch, first_head;
} NMForwardArgs;

DYNATTN_API int32_t dynattn_nm_forward(const NMForwardArgs* args);

// Attention of rows that choose by their own scores, forward. By rank: a row of a allowed keys keeps the
// min(most, ceil(numerator · a / denominator)) with the largest scores; ties go to the lower key. By weight: a row
// keeps the keys whose dense softmax weight exceeds `weight`, and the first of those with the largest score.
typedef struct {
  NMForwardArgs call;  // as dense attention: n and m 1, no cells; with `least` and `last`
  int64_t most, numerator, denominator;
  float weight;  // below 0: by rank
} RowForwardArgs;

DYNATTN_API int32_t dynattn_row_forward(const RowForwardArgs* args);

// N:M attention, backward: gradients of `out` and `logsumexp` with the choice held fixed. The choice is made again
// from the same products in the same order, so it is the forward's to the bit. With `least` and `last` the same for
// rows that chose by their scores.
typedef struct {
  NMForwardArgs forward;        // as the forward had it, `out` and `logsumexp` filled; without kept_mass
  const void* grad_out;         // [batch, heads, q_len, value_dim], in dtype
  const float* grad_logsumexp;  // [batch, heads, q_len] contiguous
  void* d_query;                // [batch, heads, q_len, head_dim], in dtype, as all gradients
  void* d_key;                  // [batch, kv_heads, kv_len, head_dim]
  void* d_value;                // [batch, kv_heads, kv_len, value_dim]
  float* d_scores;              // [batch, heads, q_len, kv_len] contiguous and zero, or NULL when not asked for

  int64_t grad_out_strides[3];  // batch, head, length
  int64_t d_query_strides[3];
  int64_t d_key_strides[3];
  int64_t d_value_strides[3];
} NMBackwardArgs;

DYNATTN_API int32_t dynattn_nm_backward(const NMBackwardArgs* args);

// Sizes of NMBackwardArgs and RowForwardArgs, added up: tells a caller that was built for other arguments.
DYNATTN_API int32_t dynattn_args_bytes(void);

// The fastest instruction set that this library holds and this processor runs.
DYNATTN_API int32_t dynattn_best_isa(void);

// Why an instruction set cannot run here, in words; NULL where it can. Asking for AMX asks the operating system for its
// permission, once for the process.
DYNATTN_API const char* dynattn_isa_refusal(int32_t isa);

// The tile engine that is faster than any other kernel of bfloat16 on this processor; -1 where there is none.
DYNATTN_API int32_t dynattn_tile_isa(void);

// Multiply-add peak of `threads` threads, in floating-point operations per second, measured over about
// `seconds`: the roofline that `dynattn bench` draws.
DYNATTN_API double dynattn_fma_peak(int32_t isa, int32_t threads, double seconds, dynattn_parallel_fn parallel);

#ifdef __cplusplus
}
#endif
