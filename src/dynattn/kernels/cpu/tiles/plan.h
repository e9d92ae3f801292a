// The geometry of one call of the tile kernels: how queries and keys are cut.
//
// Scores are kept transposed, keys in rows and queries in lanes, so that the members of a group of M stand in different
// vectors whatever their stride, and a choice among them needs no shuffle:
//
//     S^T = K Q^T        A: 16 keys' own rows          B: pairs of dims of 16 queries
//     O^T = V^T P^T      A: 16 dims of 32 places       B: pairs of places of 16 queries
//
// Scores are in the order of the keys. Weights and values are in an order of places, in which the members of a group
// are neighbours whatever their stride.
#pragma once

#include "common/row_sums.h"
#include "dynattn_cpu.h"
#include "tiles/engine.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kQueries = 32;      // queries at a time: two tiles of lanes
constexpr int kGroups = 2;        // of kLanes queries
constexpr int kMaxKeyBlock = 256; // keys at a time, at most
constexpr int kLeastKeyBlock = 48;
constexpr int kBestKeyBlock = 64;
constexpr int kPackedKeys = 256;   // keys that one thread packs at a time, at least

constexpr int kQueriesOfTask = 256;  // at most; cut down to kQueries where there would be fewer tasks than:
constexpr int64_t kLeastTileTasks = 16;

constexpr double kLog2 = 0.69314718055994530942;  // natural logarithm of 2

// Scores up to this many powers of two are taken by the fast variant: a reference is then an integer that a float
// holds with its fraction to spare.
constexpr float kReach = 0x1p18f;

struct TilePlan {
  const NMForwardArgs* args;
  RowSums sums;  // not NULL: these are what is asked for, in place of the output
  int n, m, stride;  // n == m is taken as 1 of 1
  int parts;         // bfloat16 numbers that a number is taken as: 1 of bfloat16 tensors, 1 to 3 of float32 (parts.h)
  bool floats;       // tensors are float32
  int32_t* unfit;    // becomes 1 where a variant does not hold such numbers; the output is then not written in full
  const RowForwardArgs* rule;  // not NULL: rows choose by their own scores (rows.h)
  bool skips;          // what scores show to be small is skipped (skips.h)
  uint8_t* kept_runs;  // for that, says what is kept; NULL where nobody asks
  float margin;        // for that, in the unit of the kernel's scores
  bool window;       // there are entries kept besides the choice
  bool cut;          // of what is kept, some is dropped for where it stands
  bool counts;       // kept mass, kept and allowed are asked for
  bool exact;        // weights are summed in float32 before they are rounded, for the logsumexp
  bool in_order;     // whole vectors are chosen between: dense, 1:2, 1:4 and 2:4
  int span;          // places of two weights that are picked, where the engine takes such products; else 0

  int key_block;       // keys at a time: whole blocks of m · stride
  int padded;          // the same rounded up to kTileDepth
  int64_t key_blocks;  // of the whole length
  int64_t depth;       // head_dim in steps of kTileDepth
  int64_t dims;        // value_dim in tiles of kTileRows
  int64_t packed_from; // first key block whose keys are packed; the ones before are read in place
  uint8_t place[kMaxKeyBlock], key_at[kMaxKeyBlock];  // of a key of a block, and the other way round

  int64_t query_block, query_blocks;  // queries of a task, and tasks of a query head
  int64_t offset;                     // position of query 0 on the key axis

  // A score is product · multiplier + bias where there is a bias, else the product; its weight is
  // 2^(score · exponent - reference).
  bool biased;
  float multiplier, exponent;

  int64_t step_blocks, pack_steps;  // key blocks that one thread packs at a time
};

DYNATTN_INLINE int64_t packed_key_bytes(const TilePlan& plan) { return plan.parts * plan.depth * kTileDepth * 2; }

// Bytes of a key block's keys, and of its values, as packed.
DYNATTN_INLINE int64_t key_block_bytes(const TilePlan& plan) { return plan.padded * packed_key_bytes(plan); }
DYNATTN_INLINE int64_t value_block_bytes(const TilePlan& plan) {
  return plan.padded / kTileDepth * plan.parts * plan.dims * kTileBytes;
}

// Words from one group's weights of a block to the next's, and from one part's to the next's:
// [part][group][pair of places][kLanes].
DYNATTN_INLINE int64_t group_words(const TilePlan& plan) { return int64_t{plan.padded} / 2 * (kQueries / kGroups); }
DYNATTN_INLINE int64_t weight_part_words(const TilePlan& plan) { return kGroups * group_words(plan); }

// Keys at a time: of the multiples of a block of m · stride, the one that wastes the least of its last tile. A few keys
// are one block, of no more tiles than they need.
static int choose_key_block(const TilePlan& plan) {
  const NMForwardArgs& args = *plan.args;
  const int unit = plan.m * plan.stride;
  if (kTileDepth % unit == 0 && args.kv_len <= kTileDepth) return kTileDepth;
  if (plan.m == 1) return args.blocks != nullptr && args.block_size < kBestKeyBlock ? kTileDepth : kBestKeyBlock;
  int best = 0;
  int64_t least = 1;
  for (int keys = unit; keys <= kMaxKeyBlock && least > 0; keys += unit) {
    if (keys < kLeastKeyBlock && keys + unit <= kMaxKeyBlock) continue;
    // waste / keys < waste of the best / best
    const int64_t waste = round_up(keys, kTileDepth) - keys;
    if (best == 0 || waste * best < least * keys) best = keys, least = waste;
  }
  return best;
}

static void plan_places(TilePlan& plan) {
  int key = 0;
  for (int block = 0; block < plan.key_block; block += plan.m * plan.stride) {
    for (int member = 0; member < plan.m; member++) {
      for (int group = 0; group < plan.stride; group++, key++) {
        plan.place[key] = static_cast<uint8_t>(block + group * plan.m + member);
        plan.key_at[plan.place[key]] = static_cast<uint8_t>(key);
      }
    }
  }
  for (; key < plan.padded; key++) plan.place[key] = plan.key_at[key] = static_cast<uint8_t>(key);
}

static void plan_keys(TilePlan& plan) {
  const NMForwardArgs& args = *plan.args;
  plan.key_block = choose_key_block(plan);
  plan.padded = static_cast<int>(round_up(plan.key_block, kTileDepth));
  plan_places(plan);
  plan.key_blocks = ceil_div(args.kv_len, plan.key_block);
  plan.depth = ceil_div(args.head_dim, kTileDepth);
  plan.dims = ceil_div(args.value_dim, kTileRows);
  // A tile of A reads whole rows: keys lie well where head_dim fills its tiles, and where no tile reaches over the end.
  const int64_t inside = args.kv_len < plan.padded ? 0 : (args.kv_len - plan.padded) / plan.key_block + 1;
  plan.packed_from = args.head_dim % kTileDepth == 0 && !plan.floats ? inside : 0;
  plan.step_blocks = ceil_div(kPackedKeys, plan.key_block);
  plan.pack_steps = ceil_div(plan.key_blocks, plan.step_blocks);
}

static void plan_queries(TilePlan& plan) {
  const NMForwardArgs& args = *plan.args;
  plan.offset = args.kv_len - args.q_len;
  plan.query_block = kQueriesOfTask;
  while (plan.query_block > kQueries &&
         ceil_div(args.q_len, plan.query_block) * args.batch * args.heads < kLeastTileTasks) {
    plan.query_block /= 2;
  }
  plan.query_blocks = ceil_div(args.q_len, plan.query_block);
}

static void make_tile_plan(TilePlan& plan, const NMForwardArgs& args) {
  plan.args = &args;
  plan.sums = {};
  plan.unfit = nullptr;
  plan.rule = nullptr;
  plan.skips = false;
  plan.kept_runs = nullptr;
  plan.floats = args.dtype == DYNATTN_FLOAT32;
  plan.parts = plan.floats ? args.parts : 1;
  const bool dense = args.n == args.m;
  plan.n = dense ? 1 : args.n;
  plan.m = dense ? 1 : args.m;
  plan.stride = dense ? 1 : args.stride;
  plan.window = !dense && (args.window > 0 || args.sinks > 0);
  plan.cut = args.within > 0;
  plan.counts = args.kept_mass != nullptr;
  plan.exact = plan.counts || plan.floats || args.needs_grad != 0;
  const bool pattern = plan.m == 1 || plan.m == 2 || (plan.m == 4 && plan.n <= 2);
  plan.in_order = pattern && !plan.counts;

  const float size = fabsf(args.scale), log2e = 1.44269504088896341f;
  plan.biased = args.mask != nullptr && args.mask_dtype != DYNATTN_BOOL;
  plan.multiplier = plan.biased ? size : 1.0f;
  plan.exponent = plan.biased ? log2e : size * log2e;
  plan_keys(plan);
  plan_queries(plan);
  const bool picks = kPicks && plan.in_order && plan.m > 1 && !plan.floats && args.drop_below == 0;
  plan.span = picks && plan.key_block % kTileDepth == 0 ? 2 * plan.m / plan.n : 0;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
