// The C interface of dynattn's CPU kernels: plain pointers, strides and tags.
//
// There are no torch headers and no Python headers here, so that one shared library serves every Python and every
// torch. kernels/cpu/arguments.py lists the fields of these structures by name and packs them into bytes; a test holds
// the two against each other, field by field.
#pragma once

#include <stdint.h>

#define DYNATTN_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// Largest head_dim and value_dim.
enum { DYNATTN_MAX_HEAD_DIM = 512 };

enum { DYNATTN_FLOAT32 = 0, DYNATTN_BFLOAT16 = 1, DYNATTN_FLOAT16 = 2, DYNATTN_BOOL = 3, DYNATTN_INT8 = 4 };

enum { DYNATTN_OK = 0, DYNATTN_UNSUPPORTED_ISA = 1, DYNATTN_OUT_OF_MEMORY = 2, DYNATTN_BAD_ARGUMENT = 3,
       DYNATTN_NOT_BY_PARTS = 5, DYNATTN_BAD_PAGE = 4 };

// Numbers 3 to 5 are engines of the tile kernels, which take bfloat16 and compute N:M attention and whole
// blocks, forward and backward; and float32, forward without dropout.
enum {
  DYNATTN_ISA_PORTABLE = 0,
  DYNATTN_ISA_AVX2 = 1,
  DYNATTN_ISA_AVX512 = 2,
  DYNATTN_ISA_TILES_PORTABLE = 3,
  DYNATTN_ISA_AVX512BF16 = 4,
  DYNATTN_ISA_AMX = 5,
  DYNATTN_ISA_NEON = 6
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
  float* logsumexp;   // [batch, heads, q_len] contiguous, natural log, over kept entries; or NULL in a forward
  float* kept_mass;   // [batch, heads, q_len] contiguous, or NULL when not asked for
  int32_t* kept;      // [batch, heads, q_len] contiguous: pairs kept, or NULL (all three go together)
  int32_t* allowed;   // [batch, heads, q_len] contiguous: pairs allowed, or NULL
  // [batch, heads, ceil(q_len / block_queries), ceil(kv_len / block_size)] contiguous: 0 where a block of queries and keys
  // is dropped whole, before anything is chosen in it; or NULL.
  const uint8_t* blocks;
  // [batch, heads, q_len] contiguous, for rows that choose by their own scores (dynattn_row_forward writes them where
  // both are given); NULL in N:M attention. A row keeps the scores above its threshold, in the kernels' own unit, and
  // of those equal to it the keys up to `last_tie`; with an infinite threshold, the key `last_tie` alone, or none at -1.
  float* threshold;
  int32_t* last_tie;

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
  int32_t window, sinks;         // kept besides what is chosen
  int32_t within, within_sinks;  // of what is kept, the pairs outside of this window and these sinks are dropped; 0: none
  int32_t beyond_blocks;         // 1: blocks that are dropped keep the pairs of window and sinks all the same
  int32_t stride;       // between the members of a group; m · stride is at most 256
  int32_t causal;       // bottom-right aligned: key j is allowed for query i when j <= i + kv_len - q_len
  int32_t isa;          // one of DYNATTN_ISA_*
  int32_t threads;      // at most this many, and no more than a few for each processor
  int32_t needs_grad;   // scores must round as the backward's will, so that the path for few queries is not taken
  int32_t block_queries, block_size;  // queries, and keys, of a block, between 1 and 1024, where there are blocks
  uint32_t drop_below;  // a kept weight is dropped with this probability, times 2^32; 0 for no dropout
  float keep_factor;    // the factor of the weights that are not dropped
  // Batch and head of the whole call that these tensors begin with, where a call runs in parts: dropout draws by them.
  int32_t first_batch, first_head;
  // On tiles, of float32: how many bfloat16 numbers a number is taken as, 1 to 3, of which products are 1, 3 or 6.
  int32_t parts;
} NMForwardArgs;

DYNATTN_API int32_t dynattn_nm_forward(const NMForwardArgs* args);

// N:M attention of texts of different lengths, forward: each as dynattn_nm_forward computes it alone, to the bit, and
// all by the same threads. Text t has the queries from query_start[t] to query_start[t + 1] - 1 and key_count[t] keys:
// those from key_start[t] on or, with block_table, key j in row j % page_size of page block_table[t][j / page_size].
typedef struct {
  // As for one text without mask and blocks, of batch 1, whose queries and keys are those of all texts one after
  // another. With block_table, kv_len is not read, and the batch strides of keys and values are those from page to page.
  // Of logsumexp, kept_mass, kept and allowed, text t has [heads, its queries] from heads * query_start[t] on.
  NMForwardArgs call;
  const int64_t* query_start;  // [texts + 1]
  const int64_t* key_start;    // [texts]; not read with block_table
  const int64_t* key_count;    // [texts]
  const int32_t* block_table;  // [texts, table_width] contiguous, of which only pages with keys are read; or NULL
  int64_t texts, table_width;
  int64_t pages;      // how many there are
  int64_t page_size;  // keys of a page, a multiple of 16
} NMTextsArgs;

// DYNATTN_BAD_PAGE where block_table names a page that there is not.
DYNATTN_API int32_t dynattn_nm_texts(const NMTextsArgs* args);

// Attention of rows that choose by their own scores, forward. By rank, a row of `a` allowed keys keeps the
// min(a, most, max(floor, ceil(numerator · a / denominator))) with the largest scores; ties go to the lower key. By
// weight, a row keeps the keys whose dense softmax weight exceeds `weight`, and the first of those with the largest
// score. By mass, it keeps the fewest keys with the largest scores that hold the share `mass` of the dense softmax
// weights; ties go to the lower key.
typedef struct {
  // As for dense attention: n and m are 1, without blocks. Window and sinks are joined to what the rule keeps. Tile engines
  // take bfloat16, for the output alone and without window, sinks and `within`, and leave what is not finite, or too large
  // for their fast variant, to other kernels.
  NMForwardArgs call;
  int64_t most, floor, numerator, denominator;
  float weight;  // below 0: by rank or by mass
  float mass;    // above 0, at most 1: by mass; 0: by rank or by weight
} RowForwardArgs;

DYNATTN_API int32_t dynattn_row_forward(const RowForwardArgs* args);

// Dense attention that skips what its scores show to be small, forward. Of DYNATTN_SKIP_QUERIES queries and
// DYNATTN_SKIP_KEYS keys, counted from query 0 and key 0, the pairs are dropped where every query's largest score among
// them lies more than `margin` below its largest among the keys up to and including these. With call.blocks, all of this
// is among what these keep: the rest is forbidden, and neither read nor scored but by a single query.
typedef struct {
  // As for dense attention: n and m are 1, without windows, counts or thresholds. Blocks hold multiples of DYNATTN_SKIP_QUERIES
  // queries and of DYNATTN_SKIP_KEYS keys.
  NMForwardArgs call;
  uint8_t* kept;  // [batch, heads, ceil(q_len / DYNATTN_SKIP_QUERIES), ceil(kv_len / DYNATTN_SKIP_KEYS)] contiguous and
                  // zero: 1 where kept; or NULL where nobody asks
  float margin;   // at least 0, in the unit of scale · QKᵀ
} SkipForwardArgs;

enum { DYNATTN_SKIP_QUERIES = 8, DYNATTN_SKIP_KEYS = 16 };

DYNATTN_API int32_t dynattn_skip_forward(const SkipForwardArgs* args);

// Attention over blocks of queries and keys of which each row of blocks keeps some, forward: those with a key in the
// window or among the sinks, those that their mean does not speak for, and of the others the best by their mean score
// over allowed pairs. By rank, of `a` blocks with an allowed pair max(floor, ceil(numerator · a / denominator)) are kept;
// by mass the fewest that, with those kept by force, hold the share `mass` of the softmax over the blocks' means.
typedef struct {
  NMForwardArgs call;  // without `blocks`, but with their size, the same for queries and keys
  uint8_t* chosen;     // [batch, heads, ceil(q_len / block_size), ceil(kv_len / block_size)] contiguous: 1 where kept
  int64_t floor, numerator, denominator;
  float mass;   // 0: by rank
  float alike;  // blocks of queries or of keys with a smaller mean cosine are kept by force; 0: none is
  int32_t window, sinks;
} BlockForwardArgs;

// The choice alone.
DYNATTN_API int32_t dynattn_choose_blocks(const BlockForwardArgs* args);

// The choice, and attention over what is kept. `chosen` may be NULL here.
DYNATTN_API int32_t dynattn_block_forward(const BlockForwardArgs* args);

// N:M attention, backward: gradients of `out` and `logsumexp` with the choice held fixed. The choice is made again
// from the same products in the same order, so it is the forward's to the bit. With `threshold` and `last_tie` it
// is the gradient of rows that chose by their own scores.
typedef struct {
  NMForwardArgs forward;        // as the forward had it, `out` and `logsumexp` filled; without kept_mass
  const void* grad_out;         // [batch, heads, q_len, value_dim], in dtype
  const float* grad_logsumexp;  // [batch, heads, q_len] contiguous, or NULL where it is 0
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

// A linear layer, y = x Wᵀ + bias, of which parts are left out. Sums are of float32 and rounded once. An element of y is the
// same to the bit for any number of threads, and whatever the other tokens are as long as there are as few, or as many, of
// them: up to DYNATTN_LINEAR_TOKENS are few.
//
// Where inputs are kept, exactly one of these says which, for each token apart; a NaN that the last two look at is kept:
//   keep          [tokens, inputs]: 1 where kept;
//   thresholds    |x| > thresholds[0], or thresholds[input] where threshold_stride is 1;
//   n, m          of every m = 2, 4, 8 or 16 inputs in a row, the n < m with the largest |x| · factors[input]; ties go to
//                 the first. A last group of fewer keeps as many of them as there are.
typedef struct {
  const void* x;            // [tokens, inputs] contiguous, in dtype
  const void* weight;       // as the functions below have it
  const uint32_t* places;   // of dynattn_linear_nm_weight, else NULL
  const float* scale;       // [outputs] the factor of each output, where weights are of int8, else NULL
  const void* bias;         // [outputs] contiguous, in dtype, or NULL
  const uint8_t* keep;      // or NULL, as the functions below have it
  const float* thresholds;  // or NULL
  const float* factors;     // [inputs], at least 0; or NULL, for 1
  void* out;                // [tokens, outputs] contiguous, in dtype

  int64_t tokens, inputs, outputs;
  int64_t weight_stride;  // elements from row to row; the elements of a row are contiguous
  int64_t threshold_stride;

  dynattn_parallel_fn parallel;

  int32_t dtype;         // float32 or bfloat16
  int32_t weight_dtype;  // the same, or int8
  int32_t n, m;          // 0 where nothing says otherwise
  int32_t isa, threads;
} LinearArgs;

enum { DYNATTN_LINEAR_TOKENS = 8, DYNATTN_NM_GROUPS = 16 };

// Which inputs are kept, by thresholds or by n and m, without a product: out is [tokens, inputs] of bytes, 1 where kept.
// Neither weight nor bias is read.
DYNATTN_API int32_t dynattn_linear_choice(const LinearArgs* args);

// y[t] = Σ_i x[t][i] · weight[i] over the inputs that are kept. weight is [inputs, outputs]; for few tokens rows that no token
// keeps are not read. Many tokens and their weights are float32.
DYNATTN_API int32_t dynattn_linear_rows(const LinearArgs* args);

// y[t][j] = Σ_i x[t][i] · weight[j][i] where keep[tokens][outputs] keeps the output, else 0. weight is [outputs, inputs]; rows
// that no token keeps are not read. Few tokens.
DYNATTN_API int32_t dynattn_linear_outputs(const LinearArgs* args);

// y[t][j] = Σ over the kept weights of output j, of which each M = 2 or 4 inputs in a row have N < M. Few tokens. Contiguous:
//   weight [outputs, blocks, N, DYNATTN_NM_GROUPS]: the k-th kept weight of each group of a block, in the inputs' order;
//   places [outputs, words]: for each of these lines of weights DYNATTN_NM_GROUPS bits, the lowest first: a weight's place
//   in its group. For M = 4 these are the low bits, and as many high ones follow. The last word is filled up.
// A block is DYNATTN_NM_GROUPS · M inputs, the last one filled up with weights of 0.
DYNATTN_API int32_t dynattn_linear_nm_weight(const LinearArgs* args);

// The sizes of NMBackwardArgs, RowForwardArgs, SkipForwardArgs, BlockForwardArgs, NMTextsArgs and LinearArgs, added up. A caller compares it with its
// own, to learn whether it was built for other arguments.
DYNATTN_API int32_t dynattn_args_bytes(void);

// DYNATTN_INTERFACE of the library, for what sizes do not show: numbers and rules of this header. 1: logsumexp may be
// NULL. 2: dynattn_tile_disagreement. 3: blocks of SkipForwardArgs. 5: thresholds of rows and what skips keep may be
// NULL. 6: within, in place of n = 0.
enum { DYNATTN_INTERFACE = 6 };
DYNATTN_API int32_t dynattn_interface(void);

// The fastest instruction set that this library holds and this processor runs.
DYNATTN_API int32_t dynattn_best_isa(void);

// Why an instruction set cannot run here, in words; NULL where it can. Asking for AMX asks the operating system for its
// permission, once for the process.
DYNATTN_API const char* dynattn_isa_refusal(int32_t isa);

// The tile engine that is made to be faster than other kernels of bfloat16 on this processor; -1 where there is none.
DYNATTN_API int32_t dynattn_tile_isa(void);

// What a tile engine computes on this processor otherwise than the portable engine does, in words; NULL where they
// agree on a few small problems, forward and backward. Takes some hundredths of a second.
DYNATTN_API const char* dynattn_tile_disagreement(int32_t isa);

// Multiply-add peak of `threads` threads, in floating-point operations per second, measured over about
// `seconds`: the roofline that `dynattn bench` draws.
DYNATTN_API double dynattn_fma_peak(int32_t isa, int32_t threads, double seconds, dynattn_parallel_fn parallel);

#ifdef __cplusplus
}
#endif
