// The geometry of a backward, and what it keeps of keys and queries on their way.
//
//     dV = Pᵀ dO,    dS = P ∘ (dO Vᵀ - rowsum(dO ∘ out) + dlogsumexp),    dQ = scale · dS K,    dK = scale · dSᵀ Q
//
// Five products, all with queries in lanes or in the depth of a tile:
//
//     S^T  = K Q^T       A: 16 keys, their own rows        B: pairs of dims of 16 queries     the forward's own
//     dP^T = V dO^T      A: 16 values, their own rows      B: pairs of dims of 16 queries
//     dQ^T += K^T dS^T   A: 16 dims of 32 keys             B: pairs of keys of 16 queries     as O^T in the forward
//     dV  += P^T dO      A: 16 keys, 32 queries' weights   B: pairs of queries of 16 dims
//     dK  += dS^T Q      A: 16 keys, 32 queries' gradients B: pairs of queries of 16 dims
#pragma once

#include "common/arena.h"
#include "common/backward_parts.h"
#include "tiles/drop.h"
#include "tiles/pack.h"
#include "tiles/products.h"
#include "tiles/softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Tiles of queries that meet a block of keys one after the other, so that the block's dK and dV are loaded and stored
// once for all.
constexpr int kBackwardTiles = 4;
constexpr int kBackwardQueries = kBackwardTiles * kQueries;

struct BackwardPlan {
  const NMBackwardArgs* args;
  RowSums sums;  // NULL where every logsumexp is fine enough
  NMForwardArgs upstream_args, product_args;
  TilePlan scores;    // of Q Kᵀ, as the forward had it
  TilePlan upstream;  // of dO Vᵀ: values are its keys
  TilePlan product;   // of dS K: keys are its values
};

static void make_backward_plan(BackwardPlan& plan, const NMBackwardArgs& args, const RowSums& sums) {
  plan.args = &args;
  plan.sums = sums;
  name_products(args, plan.upstream_args, plan.product_args);
  make_tile_plan(plan.scores, args.forward);
  make_tile_plan(plan.upstream, plan.upstream_args);
  make_tile_plan(plan.product, plan.product_args);
}

// Floats of a row of dK, and of one of dV.
DYNATTN_INLINE int64_t key_width(const BackwardPlan& plan) { return plan.product.dims * kTileRows; }
DYNATTN_INLINE int64_t value_width(const BackwardPlan& plan) { return plan.scores.dims * kTileRows; }

// Key blocks [first, end) of one head, and the gradients of their keys and values so far.
struct KeySection {
  int64_t first, end;
  char *keys, *values;  // rows that are not read in place
  char* turned;         // keys as the forward packs values
  uint8_t* odd;         // of pack_value_blocks()
  float *d_key, *d_value;  // [block][padded][width]
  float key_bound, value_bound;
};

static KeySection lay_section(const BackwardPlan& plan, int64_t blocks, Arena& arena) {
  KeySection s = {};
  s.keys = arena.take<char>(blocks * key_block_bytes(plan.scores));
  s.values = arena.take<char>(blocks * key_block_bytes(plan.upstream));
  s.turned = arena.take<char>(blocks * value_block_bytes(plan.product));
  s.odd = arena.take<uint8_t>(blocks * plan.scores.padded);
  s.d_key = arena.take<float>(blocks * plan.scores.padded * key_width(plan));
  s.d_value = arena.take<float>(blocks * plan.scores.padded * value_width(plan));
  return s;
}

static void open_section(const BackwardPlan& plan, int64_t head, int64_t first, int64_t end, KeySection& s) {
  const NMForwardArgs& args = plan.args->forward;
  const char* keys = head_of(args, args.key, args.key_strides, head);
  const char* values = head_of(args, args.value, args.value_strides, head);
  s.first = first, s.end = end;
  s.key_bound = pack_key_blocks(plan.scores, keys, first, end, s.keys);
  s.value_bound = pack_key_blocks(plan.upstream, values, first, end, s.values);
  pack_value_blocks(plan.product, keys, first, end, s.turned, s.odd);
  const int64_t rows = (end - first) * plan.scores.padded;
  memset(s.d_key, 0, static_cast<size_t>(rows * key_width(plan)) * sizeof(float));
  memset(s.d_value, 0, static_cast<size_t>(rows * value_width(plan)) * sizeof(float));
}

// A row of sums, times a factor, as bfloat16 numbers.
static void write_sums(char* to, const float* sums, int64_t count, float factor) {
  uint16_t* row = reinterpret_cast<uint16_t*>(to);
  for (int64_t i = 0; i < count; i++) row[i] = to_bfloat16(sums[i] * factor);
}

static void close_section(const BackwardPlan& plan, int64_t head, const KeySection& s) {
  const NMBackwardArgs& args = *plan.args;
  const NMForwardArgs& forward = args.forward;
  char* d_key = const_cast<char*>(head_of(forward, args.d_key, args.d_key_strides, head));
  char* d_value = const_cast<char*>(head_of(forward, args.d_value, args.d_value_strides, head));
  const float keep = forward.drop_below > 0 ? forward.keep_factor : 1.0f;
  for (int64_t block = s.first; block < s.end; block++) {
    for (int64_t i = 0; i < plan.scores.key_block; i++) {
      const int64_t key = block * plan.scores.key_block + i, row = (block - s.first) * plan.scores.padded + i;
      if (key >= forward.kv_len) return;
      write_sums(d_key + key * args.d_key_strides[2] * 2, s.d_key + row * key_width(plan), forward.head_dim,
                 forward.scale);
      write_sums(d_value + key * args.d_value_strides[2] * 2, s.d_value + row * value_width(plan), forward.value_dim,
                 keep);
    }
  }
}

// A thread's memory for one block of queries.
struct BackwardScratch {
  uint32_t *queries, *grads;              // [tile of queries] as pack_queries() has them
  uint32_t *query_pairs, *grad_pairs;     // [tile of queries][tile of dims][pair of queries][dim]
  float *scores, *d_scores;               // [key][kQueries]; weights, and gradients of weights and then of scores
  uint32_t *kept, *left;                  // [group][pair of places][kLanes]: ones where a pair is kept, and not dropped
  uint32_t* pairs;                        // likewise, gradients of scores
  uint16_t *weight_rows, *gradient_rows;  // [key][kBackwardQueries]
  float *origin, *reference, *delta;      // [kBackwardQueries]
  uint8_t *poisoned, *careful;            // [kBackwardQueries], [kBackwardTiles]
  Allowed* allowed;
};

static BackwardScratch lay_backward_scratch(const BackwardPlan& plan, Arena& arena) {
  const int64_t keys = plan.scores.padded, words = keys / 2 * kQueries;
  BackwardScratch s;
  s.queries = arena.take<uint32_t>(kBackwardTiles * kGroups * plan.scores.depth * kTileWords);
  s.grads = arena.take<uint32_t>(kBackwardTiles * kGroups * plan.upstream.depth * kTileWords);
  s.query_pairs = arena.take<uint32_t>(kBackwardTiles * plan.product.dims * kTileWords);
  s.grad_pairs = arena.take<uint32_t>(kBackwardTiles * plan.scores.dims * kTileWords);
  s.scores = arena.take<float>(keys * kQueries);
  s.d_scores = arena.take<float>(keys * kQueries);
  s.kept = arena.take<uint32_t>(words);
  s.left = arena.take<uint32_t>(words);
  s.pairs = arena.take<uint32_t>(words);
  s.weight_rows = arena.take<uint16_t>(keys * kBackwardQueries);
  s.gradient_rows = arena.take<uint16_t>(keys * kBackwardQueries);
  s.origin = arena.take<float>(kBackwardQueries);
  s.reference = arena.take<float>(kBackwardQueries);
  s.delta = arena.take<float>(kBackwardQueries);
  s.poisoned = arena.take<uint8_t>(kBackwardQueries);
  s.careful = arena.take<uint8_t>(kBackwardTiles);
  s.allowed = arena.take<Allowed>(1);
  return s;
}

// What is never written lies behind the last key of a block, where tiles read zeros.
static void clear_scratch(const BackwardPlan& plan, const BackwardScratch& s) {
  const size_t keys = static_cast<size_t>(plan.scores.padded);
  memset(s.pairs, 0, keys / 2 * kQueries * sizeof(uint32_t));
  memset(s.weight_rows, 0, keys * kBackwardQueries * sizeof(uint16_t));
  memset(s.gradient_rows, 0, keys * kBackwardQueries * sizeof(uint16_t));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
