// Dropout of kept weights: factors 0 or 1 / (1 - p), from a counter-based generator (reference/dropout.py has the
// definition), so that forward and backward draw the same without storing it.
#pragma once

#include "task.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kPhiloxRounds = 10;

// The first word of Philox4x32-10: the key of one head's stream.
static uint32_t dropout_stream(uint64_t seed, uint32_t batch, uint32_t head) {
  uint32_t c[4] = {head, batch, 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < kPhiloxRounds; round++) {
    const uint64_t low = uint64_t{c[0]} * 0xD2511F53u, high = uint64_t{c[2]} * 0xCD9E8D57u;
    const uint32_t next[4] = {static_cast<uint32_t>(high >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(high),
                              static_cast<uint32_t>(low >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(low)};
    memcpy(c, next, sizeof c);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return c[0];
}

// The first words of Philox2x32-10, in place: for the key in each word and the query in the same place of `second`,
// which is used up. Plain loops, which compilers make vectors of.
template <int kCount>
DYNATTN_INLINE void philox_words(uint32_t key, uint32_t second[kCount], uint32_t words[kCount]) {
  for (int round = 0; round < kPhiloxRounds; round++) {
    for (int i = 0; i < kCount; i++) {
      const uint64_t product = uint64_t{words[i]} * 0xD256D193u;
      words[i] = static_cast<uint32_t>(product >> 32) ^ key ^ second[i];
      second[i] = static_cast<uint32_t>(product);
    }
    key += 0x9E3779B9u;
  }
}

// The same for one query and kWidth keys.
DYNATTN_INLINE void dropout_words(uint32_t key, uint32_t query, uint32_t words[kWidth]) {
  uint32_t second[kWidth];
  for (int i = 0; i < kWidth; i++) second[i] = query;
  philox_words<kWidth>(key, second, words);
}

// Positions in the tile of the kWidth survivors of one choice word.
DYNATTN_INLINE void survivor_positions(const Plan& plan, uint32_t places, int word, int positions[kWidth]) {
  const int place_bits = plan.layout == Layout::kTwoOfFour ? 2 : 1, members = 1 << place_bits;
  for (int lane = 0; lane < kWidth; lane++) {
    const int place = static_cast<int>(places >> (place_bits * lane)) & (members - 1);
    positions[lane] = (word / place_bits * members + place) * kWidth + lane;
  }
}

// The factors of one row of the block, as its weights lie.
static void dropout_row(const Block& block, int64_t row, int64_t tile, GroupKind kind, uint32_t stream, float* to) {
  const Plan& plan = block.plan;
  const NMForwardArgs& args = *plan.args;
  const int words = (kind == kChosenInRegisters ? kTile / 2 : plan.tile) / kWidth;
  const uint32_t* choice = block.scratch.choice + row * (kTile / 2 / kWidth);
  for (int word = 0; word < words; word++) {
    int positions[kWidth];
    if (kind == kChosenInRegisters) {
      survivor_positions(plan, choice[word], word, positions);
    } else {
      for (int lane = 0; lane < kWidth; lane++) positions[lane] = word * kWidth + lane;
    }
    uint32_t drawn[kWidth];
    for (int lane = 0; lane < kWidth; lane++) {
      drawn[lane] = static_cast<uint32_t>(tile * plan.tile + plan.key_of[positions[lane]]);
    }
    dropout_words(stream, static_cast<uint32_t>(block.first + row), drawn);
    for (int lane = 0; lane < kWidth; lane++) {
      to[word * kWidth + lane] = drawn[lane] < args.drop_below ? 0.0f : args.keep_factor;
    }
  }
}

// The factors of all rows that have weights in this tile, as the weights lie.
static void dropout_tile(const Block& block, int64_t tile) {
  const Plan& plan = block.plan;
  const NMForwardArgs& args = *plan.args;
  const uint32_t stream = dropout_stream(args.seed, static_cast<uint32_t>(args.first_batch + block.batch),
                                         static_cast<uint32_t>(args.first_head + block.index));
  for (int64_t row = 0; row < block.count; row++) {
    const int64_t group = row / plan.rows;
    const GroupKind kind = block.scratch.kinds[group];
    if (kind == kSkipped) continue;
    const int64_t stride = kind == kChosenInRegisters ? kTile / 2 : plan.tile;
    dropout_row(block, row, tile, kind, stream,
                block.scratch.drops + group * plan.rows * plan.tile + row % plan.rows * stride);
  }
}

// Weights times their factors; those of factor 0 become `dropped`. Below zero are entries not kept, which stay so.
static void drop_weights(const Block& block, float dropped) {
  const Plan& plan = block.plan;
  for (int64_t row = 0; row < block.count; row++) {
    const int64_t group = row / plan.rows;
    const GroupKind kind = block.scratch.kinds[group];
    if (kind == kSkipped) continue;
    const int64_t count = kind == kChosenInRegisters ? kTile / 2 : plan.tile;
    const int64_t at = group * plan.rows * plan.tile + row % plan.rows * count;
    float* weights = block.scratch.scores + at;
    const float* factors = block.scratch.drops + at;
    for (int64_t i = 0; i < count; i++) {
      const float product = factors[i] > 0.0f ? weights[i] * factors[i] : dropped;
      weights[i] = weights[i] < 0.0f ? weights[i] : product;
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
