// Dropout of weights. The pairs are those that common/dropout.h draws for every kernel. The factor of the weights that
// stay is applied to the output, so that no weight is rounded twice.
#pragma once

#include "common/dropout.h"
#include "tiles/softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

// The lanes of the queries, 16 of them, that lose their pair with their key to dropout.
static LaneMask dropped_lanes(const NMForwardArgs& args, uint32_t stream, int64_t first_query, const Words& keys) {
  alignas(64) uint32_t words[kLanes], second[kLanes];
  store(words, keys);
  for (int i = 0; i < kLanes; i++) second[i] = static_cast<uint32_t>(first_query + i);
  for (int round = 0; round < kPhiloxRounds; round++, stream += 0x9E3779B9u) {
    for (int i = 0; i < kLanes; i++) {
      const uint64_t product = uint64_t{words[i]} * 0xD256D193u;
      words[i] = static_cast<uint32_t>(product >> 32) ^ stream ^ second[i];
      second[i] = static_cast<uint32_t>(product);
    }
  }
  unsigned dropped = 0;
  for (int i = 0; i < kLanes; i++) dropped |= static_cast<unsigned>(words[i] < args.drop_below) << i;
  return static_cast<LaneMask>(dropped);
}

// The weights of 16 queries and two keys without those that are dropped, which become `none`. Where no query has
// a weight for both keys, as in 1:2, one number is drawn for each query.
static Words drop_pairs(const NMForwardArgs& args, uint32_t stream, int64_t first_query, int64_t low_key,
                        int64_t high_key, Words weights, Words none) {
  const Words low = broadcast_words(0xffffu), high = broadcast_words(0xffff0000u);
  const Words even = broadcast_words(static_cast<uint32_t>(low_key));
  const Words odd = broadcast_words(static_cast<uint32_t>(high_key));
  const LaneMask in_low = nonzero(both(weights, low)), in_high = nonzero(both(weights, high));
  if ((in_low & in_high) == 0) {
    if ((in_low | in_high) == 0) return weights;
    return select(dropped_lanes(args, stream, first_query, select(in_high, odd, even)), none, weights);
  }
  const LaneMask first = dropped_lanes(args, stream, first_query, even);
  weights = select(first, either(both(weights, high), both(none, low)), weights);
  const LaneMask second = dropped_lanes(args, stream, first_query, odd);
  return select(second, either(both(weights, low), both(none, high)), weights);
}

// Weights of dropped pairs become 0; in careful blocks they are marked, so that no infinite value is touched.
static void drop_weights(const QueryTile& at, int64_t first_key, int groups, bool careful, uint32_t* weights) {
  const TilePlan& plan = at.plan;
  const NMForwardArgs& args = *plan.args;
  const uint32_t stream = stream_of(args.seed, static_cast<uint32_t>(args.first_batch + at.batch),
                                         static_cast<uint32_t>(args.first_head + at.head));
  const Words none = broadcast_words(careful ? kNotKept * 0x10001u : 0u);
  const int64_t pairs = plan.padded / 2;
  for (int64_t row = 0; row < groups * pairs; row++) {
    uint32_t* const at_row = weights + row * kLanes;
    const int64_t query = at.first + row / pairs * kLanes;
    const uint8_t* const keys = plan.key_at + row % pairs * 2;
    store(at_row, drop_pairs(args, stream, query, first_key + keys[0], first_key + keys[1], load_words(at_row), none));
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
