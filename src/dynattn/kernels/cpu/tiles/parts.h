// float32 numbers as sums of bfloat16 numbers, which matrix units multiply:
//
//     x = high + middle + low          each is the rounding of what those before it leave; exact, 3 · 8 bits
//     x y = Σ_{i + j < parts} x_i y_j  6 products of 3 parts, 3 of 2, 1 of 1; what is left out is 2^-8 of each of the last
//
// The products are sums over longer rows: those of a score, for one, over the dims of each pair of parts. So keys,
// values and queries are packed part by part, and the softmax writes weights part by part, in the layouts of bfloat16
// tensors (pack.h). Numbers so large that a part or a sum may not be finite, or so small that the last part or its
// products have no bits left, are not for this: fits() says so, and the float32 kernels take the call.
#pragma once

#include "common/dtypes.h"
#include "tiles/pack.h"
#include "tiles/softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr float kLargestOfParts = 0x1p100f, kLeastOfParts = 0x1p-90f;

// The largest magnitude of float32 numbers, as Largest has it for bfloat16.
struct LargestFloat {
  uint32_t bits = 0;

  void see(float x) { bits = larger(bits, to_bits(x) & 0x7fffffffu); }
  float bound() const { return bits < 0x7f800000u ? from_bits(bits) : INFINITY; }
};

// The next part of what is left of a number.
DYNATTN_INLINE uint16_t take_part(float& rest) {
  const uint16_t part = to_bfloat16(rest);
  rest -= from_bfloat16(part);
  return part;
}

DYNATTN_INLINE const float* float_row_of(const char* head, int64_t row, int64_t stride) {
  return reinterpret_cast<const float*>(head) + row * stride;
}

// Keys of key blocks [first, last) to `to`: [key][part][dim].
static float pack_key_parts(const TilePlan& plan, const char* head, int64_t first, int64_t last, char* to) {
  const NMForwardArgs& args = *plan.args;
  const int64_t part_dims = plan.depth * kTileDepth;
  LargestFloat largest;
  memset(to, 0, static_cast<size_t>((last - first) * key_block_bytes(plan)));
  for (int64_t block = first; block < last; block++, to += key_block_bytes(plan)) {
    for (int64_t i = 0; i < plan.key_block && block * plan.key_block + i < args.kv_len; i++) {
      const float* row = float_row_of(head, block * plan.key_block + i, args.key_strides[2]);
      uint16_t* parts = reinterpret_cast<uint16_t*>(to + i * packed_key_bytes(plan));
      for (int64_t d = 0; d < args.head_dim; d++) {
        float rest = row[d];
        largest.see(rest);
        for (int part = 0; part < plan.parts; part++) parts[part * part_dims + d] = take_part(rest);
      }
    }
  }
  return largest.bound();
}

// Values of key blocks [first, last): [key block][32 places][part][tile of dims][dim][place].
static float pack_value_parts(const TilePlan& plan, const char* head, int64_t first, int64_t last, char* to) {
  const NMForwardArgs& args = *plan.args;
  const int64_t part_numbers = plan.dims * kTileBytes / 2;
  LargestFloat largest;
  memset(to, 0, static_cast<size_t>((last - first) * value_block_bytes(plan)));
  for (int64_t block = first; block < last; block++, to += value_block_bytes(plan)) {
    for (int64_t i = 0; i < plan.key_block && block * plan.key_block + i < args.kv_len; i++) {
      const float* row = float_row_of(head, block * plan.key_block + i, args.value_strides[2]);
      const int64_t place = plan.place[i];
      uint16_t* parts =
          reinterpret_cast<uint16_t*>(to) + place / kTileDepth * plan.parts * part_numbers + place % kTileDepth;
      for (int64_t d = 0; d < args.value_dim; d++) {
        float rest = row[d];
        largest.see(rest);
        for (int part = 0; part < plan.parts; part++) parts[part * part_numbers + d * kTileDepth] = take_part(rest);
      }
    }
  }
  return largest.bound();
}

// `count` queries, at most kQueries: [part][step of 32 dims][group][pair of dims][query].
static float pack_query_parts(const TilePlan& plan, const char* first, int64_t count, int groups, uint32_t* to) {
  const NMForwardArgs& args = *plan.args;
  const int64_t part_numbers = plan.depth * groups * kTileWords * 2;
  const float sign = args.scale < 0 ? -1.0f : 1.0f;
  memset(to, 0, static_cast<size_t>(plan.parts * part_numbers) * sizeof(uint16_t));
  LargestFloat largest;
  for (int64_t i = 0; i < count; i++) {
    const float* row = float_row_of(first, i, args.query_strides[2]);
    for (int64_t d = 0; d < args.head_dim; d++) {
      const int64_t tile = d / kTileDepth * groups + i / kLanes;
      const int64_t word = tile * kTileWords + d % kTileDepth / 2 * kLanes + i % kLanes;
      float rest = row[d] * sign;
      largest.see(rest);
      for (int part = 0; part < plan.parts; part++) {
        reinterpret_cast<uint16_t*>(to)[part * part_numbers + 2 * word + d % 2] = take_part(rest);
      }
    }
  }
  return largest.bound();
}

// The float32 kernels will take the call: what is yet to be done of it need not be.
static void end_call(const TilePlan& plan) { __atomic_store_n(plan.unfit, 1, __ATOMIC_RELAXED); }
DYNATTN_INLINE bool is_ended(const TilePlan& plan) { return __atomic_load_n(plan.unfit, __ATOMIC_RELAXED) != 0; }

// Whether parts hold numbers up to this magnitude.
DYNATTN_INLINE bool parts_hold(double bound) {
  return bound == 0.0 || (bound >= kLeastOfParts && bound < kLargestOfParts);
}

// Whether parts hold numbers up to these magnitudes, and products of their parts neither vanish nor overflow.
static bool fits(const TilePlan& plan, float key_bound, float value_bound, float query_bound) {
  const double product = static_cast<double>(query_bound) * static_cast<double>(key_bound);
  return parts_hold(key_bound) && parts_hold(value_bound) && parts_hold(query_bound) && parts_hold(product) &&
         product * static_cast<double>(plan.args->head_dim) < 1e37;
}

// Weights of 16 queries and a block of keys, part by part. The choice is that of bfloat16 tensors, by its marks.
static void weigh_parts(const TilePlan& plan, const ScoreTile& tile, const Allowed& allowed, int group,
                        LaneState& state) {
  const bool chosen = plan.m > 1;
  if (chosen) mark_chosen(plan, tile, allowed, group, false);
  ExactWeights weights(plan, state);
  Lanes dropped = state.dropped;
  Words kept_pairs = state.kept, allowed_pairs = state.allowed;
  const Words halves[2] = {broadcast_words(0xffffu), broadcast_words(0xffff0000u)}, one = broadcast_words(1);
  const Lanes none = broadcast_lanes(0.0f);
  for (int place = 0; place < tile.keys; place += 2) {
    const Words marks = chosen ? load_words(pair_row(tile, place)) : broadcast_words(0xffffffffu);
    Words pairs[kMostParts] = {broadcast_words(0), broadcast_words(0), broadcast_words(0)};
    for (int half = 0; half < 2 && place + half < tile.keys; half++) {
      const Lanes x = score(tile, plan.key_at[place + half]), weight = weights.weight(x);
      const LaneMask some = greater(x, broadcast_lanes(-INFINITY)), kept = nonzero(both(marks, halves[half])) & some;
      Lanes rest = select(kept, weight, none), whole = none;
      weights.total = add(weights.total, rest);
      for (int part = 0; part < plan.parts; part++) {
        const Words bits = rounded(rest);
        rest = sub(rest, low_half(bits)), whole = add(whole, low_half(bits));
        pairs[part] = half == 0 ? bits : pair(pairs[part], bits);
      }
      weights.sum = add(weights.sum, whole);
      if (!plan.counts) continue;
      dropped = add(dropped, select(static_cast<LaneMask>(some & ~kept), weight, none));
      kept_pairs = add(kept_pairs, only(kept, one));
      allowed_pairs = add(allowed_pairs, only(some, one));
    }
    for (int part = 0; part < plan.parts; part++) {
      store(pair_row(tile, place) + part * weight_part_words(plan), pairs[part]);
    }
  }
  weights.finish(state);
  state.dropped = dropped, state.kept = kept_pairs, state.allowed = allowed_pairs;
  for (int place = static_cast<int>(round_up(tile.keys, 2)); place < plan.padded; place += 2) {
    for (int part = 0; part < plan.parts; part++) {
      store(pair_row(tile, place) + part * weight_part_words(plan), broadcast_words(0));
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
