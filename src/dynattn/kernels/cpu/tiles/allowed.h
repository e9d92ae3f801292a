// Which pairs of a block of queries and a block of keys are allowed, as a word of 32 queries for each key, and what is
// added to their scores.
#pragma once

#include "common/kept_blocks.h"
#include "common/dtypes.h"
#include "common/reach.h"
#include "tiles/lanes.h"
#include "tiles/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr uint32_t kAllQueries = 0xffffffffu;

// A larger bias, or one that is NaN, is left to the careful variant, in units of the exponent.
constexpr float kLargestTileBias = 0x1p17f;

// Where a block of queries stands.
struct QueryTile {
  const TilePlan& plan;
  int64_t batch, head, first, count;  // head: of the queries; count: at most kQueries
};

// The pairs of a QueryTile with one block of keys.
struct Allowed {
  alignas(64) uint32_t pairs[kMaxKeyBlock];   // a bit for each query, which may attend to the key
  alignas(64) uint32_t forced[kMaxKeyBlock];  // likewise, kept whatever the choice
  alignas(64) uint32_t within[kMaxKeyBlock];  // likewise, not dropped behind the choice
  alignas(64) float bias[kMaxKeyBlock * kQueries];
  bool all;     // every pair is allowed, and nothing is added
  bool any;     // some pair is allowed
  bool force;   // `forced` is filled
  bool cut;     // `within` is filled
  bool unsafe;  // a bias asks for the careful variant
};

// Queries [from, to) of the tile.
DYNATTN_INLINE uint32_t query_bits(int64_t from, int64_t to) {
  from = larger<int64_t>(0, from), to = smaller<int64_t>(kQueries, to);
  if (from >= to) return 0;
  return (to == kQueries ? kAllQueries : (uint32_t{1} << to) - 1) & ~((uint32_t{1} << from) - 1);
}

// Queries of the tile that reach a key.
DYNATTN_INLINE uint32_t reaching(const QueryTile& at, const Reach& reach, int64_t key) {
  const int64_t lane = key - at.plan.offset - at.first;  // the lane whose own position it is
  return key < reach.sinks ? kAllQueries : query_bits(lane - reach.window + 1, lane + reach.window);
}

static void forbid_later_keys(const QueryTile& at, int64_t first_key, int64_t keys, Allowed& allowed) {
  for (int64_t i = 0; i < keys; i++) {
    allowed.pairs[i] &= query_bits(first_key + i - at.plan.offset - at.first, kQueries);
  }
}

static void forbid_dropped_blocks(const QueryTile& at, const BlockColumns& columns, int64_t first_key, int64_t keys,
                                  Allowed& allowed) {
  const NMForwardArgs& args = *at.plan.args;
  const Reach spared = args.beyond_blocks != 0 ? joined_reach(args) : Reach{0, 0};
  for (int64_t query = at.first; query < at.first + at.count;) {
    const int64_t next = (query / columns.queries + 1) * columns.queries;
    const uint32_t queries = query_bits(query - at.first, next - at.first);
    const uint8_t* row = block_row(columns, query);
    for (int64_t i = 0; i < keys; i++) {
      if (row[(first_key + i) / columns.size - first_key / columns.size] != 0) continue;
      allowed.pairs[i] &= ~queries | reaching(at, spared, first_key + i);
    }
    query = next;
  }
}

static const char* mask_row(const QueryTile& at, int64_t i, int64_t key) {
  const NMForwardArgs& args = *at.plan.args;
  const int64_t* stride = args.mask_strides;
  const int64_t query = at.first + smaller(i, at.count - 1);  // lanes of padding repeat the last query
  return element(args.mask, at.batch * stride[0] + at.head * stride[1] + query * stride[2] + key * stride[3],
                 args.mask_dtype);
}

static void apply_bool_mask(const QueryTile& at, int64_t first_key, int64_t keys, Allowed& allowed) {
  const NMForwardArgs& args = *at.plan.args;
  const bool shared = args.mask_strides[2] == 0;
  for (int64_t i = 0; i < (shared ? 1 : kQueries); i++) {
    const char* row = mask_row(at, i, first_key);
    const uint32_t query = shared ? kAllQueries : uint32_t{1} << i;
    for (int64_t key = 0; key < keys; key++) {
      if (row[key * args.mask_strides[3]] == 0) allowed.pairs[key] &= ~query;
    }
  }
}

static void read_mask_row(const NMForwardArgs& args, const char* row, int64_t keys, float* to) {
  const int64_t stride = args.mask_strides[3];
  if (stride == 1) return to_floats(to, row, args.mask_dtype, keys);
  for (int64_t key = 0; key < keys; key++) {
    to_floats(to + key, element(row, key * stride, args.mask_dtype), args.mask_dtype, 1);
  }
}

static void apply_float_mask(const QueryTile& at, int64_t first_key, int64_t keys, Allowed& allowed) {
  const NMForwardArgs& args = *at.plan.args;
  const bool shared = args.mask_strides[2] == 0;
  alignas(64) float row[kMaxKeyBlock];
  for (int64_t i = 0; i < (shared ? 1 : kQueries); i++) {
    const char* const own = mask_row(at, i, first_key);
    read_mask_row(args, own, keys, row);
    if (shared) {
      for (int64_t key = 0; key < keys; key++) {
        const Lanes bias = broadcast_lanes(row[key]);
        for (int group = 0; group < kGroups; group++) store(allowed.bias + key * kQueries + group * kLanes, bias);
      }
    } else {
      prefetch_mask(args, own, at.plan.key_block);
      for (int64_t key = 0; key < keys; key++) allowed.bias[key * kQueries + i] = row[key];
    }
  }
  const Lanes lowest = broadcast_lanes(-FLT_MAX), largest = broadcast_lanes(kLargestTileBias);
  LaneMask safe = kAllLanes;
  for (int64_t key = 0; key < keys; key++) {
    for (int group = 0; group < kGroups; group++) {
      const Lanes bias = load_lanes(allowed.bias + key * kQueries + group * kLanes);
      const LaneMask forbidden = greater(lowest, bias);  // NaN is not
      allowed.pairs[key] &= ~(static_cast<uint32_t>(forbidden) << (group * kLanes));
      safe &= greater(largest, bias);
    }
  }
  if (safe != kAllLanes) allowed.unsafe = true;
}

// Bits of the queries that keep a key as one of their window or of the sinks.
static void force_window(const QueryTile& at, int64_t first_key, int64_t keys, Allowed& allowed) {
  const Reach reach = joined_reach(*at.plan.args);
  uint32_t any = 0;
  for (int64_t i = 0; i < keys; i++) any |= allowed.forced[i] = reaching(at, reach, first_key + i);
  allowed.force = any != 0;
}

// Fills `allowed` for keys [first_key, first_key + plan.key_block); those behind the last key are forbidden.
static void find_allowed(const QueryTile& at, int64_t first_key, Allowed& allowed) {
  const TilePlan& plan = at.plan;
  const NMForwardArgs& args = *plan.args;
  const int64_t keys = smaller<int64_t>(plan.key_block, args.kv_len - first_key);
  const bool crossed = args.causal && first_key + keys - 1 > at.first + plan.offset;
  const BlockColumns columns = block_columns(args, at.batch, at.head, first_key, keys);
  const Area area = {at.first + plan.offset, at.first + at.count - 1 + plan.offset, first_key, keys};
  KeptBlocks kept = kept_blocks(columns, at.first, at.first + at.count - 1);
  if (kept == KeptBlocks::kNone && args.beyond_blocks != 0 && meets(joined_reach(args), area)) kept = KeptBlocks::kSome;
  allowed.force = allowed.unsafe = false;
  allowed.cut = plan.cut && !fills(cutting_reach(args), area);
  allowed.any = kept != KeptBlocks::kNone && !(plan.cut && !meets(cutting_reach(args), area));
  const bool confined = allowed.cut && plan.m == 1;  // nothing is chosen, so that it may as well be forbidden
  allowed.all = !crossed && !confined && kept == KeptBlocks::kAll && args.mask == nullptr && keys == plan.key_block;
  if (allowed.any && plan.window) force_window(at, first_key, keys, allowed);
  if (allowed.any && allowed.cut) {
    for (int64_t i = 0; i < keys; i++) allowed.within[i] = reaching(at, cutting_reach(args), first_key + i);
  }
  if (!allowed.any || allowed.all) return;

  for (int64_t i = 0; i < plan.key_block; i++) allowed.pairs[i] = i < keys ? kAllQueries : 0;
  if (crossed) forbid_later_keys(at, first_key, keys, allowed);
  if (kept == KeptBlocks::kSome) forbid_dropped_blocks(at, columns, first_key, keys, allowed);
  for (int64_t i = 0; confined && i < keys; i++) allowed.pairs[i] &= allowed.within[i];
  if (args.mask != nullptr && !plan.biased) apply_bool_mask(at, first_key, keys, allowed);
  if (plan.biased) {
    memset(allowed.bias, 0, static_cast<size_t>(plan.key_block * kQueries) * sizeof(float));
    apply_float_mask(at, first_key, keys, allowed);
  }
  uint32_t any = 0;
  for (int64_t i = 0; i < keys; i++) any |= allowed.pairs[i];
  allowed.any = any != 0;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
