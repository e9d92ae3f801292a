// Dropout of the weights of one tile, as they lie: by position, or as survivors of a choice in registers.
#pragma once

#include "common/dropout.h"
#include "common/query_block.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Positions in the tile of the kWidth survivors of one choice word.
DYNATTN_INLINE void survivor_positions(const Plan& plan, uint32_t places, int word, int positions[kWidth]) {
  const int place_bits = plan.layout == Layout::kTwoOfFour ? 2 : 1, members = 1 << place_bits;
  for (int lane = 0; lane < kWidth; lane++) {
    const int place = static_cast<int>(places >> (place_bits * lane)) & (members - 1);
    positions[lane] = (word / place_bits * members + place) * kWidth + lane;
  }
}

// The factors of one row, as its weights lie.
static void dropout_row(const QueryBlock& block, int64_t row, int64_t tile, BandKind kind, uint32_t stream, float* to) {
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
static void dropout_tile(const QueryBlock& block, int64_t tile) {
  const Plan& plan = block.plan;
  const NMForwardArgs& args = *plan.args;
  const uint32_t stream = dropout_stream(args.seed, static_cast<uint32_t>(args.first_batch + block.batch),
                                         static_cast<uint32_t>(args.first_head + block.index));
  for (int64_t row = 0; row < block.count; row++) {
    const int64_t band = row / plan.rows;
    const BandKind kind = block.scratch.kinds[band];
    if (kind == kSkipped) continue;
    const int64_t stride = kind == kChosenInRegisters ? kTile / 2 : plan.tile;
    dropout_row(block, row, tile, kind, stream,
                block.scratch.drops + band * plan.rows * plan.tile + row % plan.rows * stride);
  }
}

// Weights times their factors; those of factor 0 become `dropped`. Below zero are entries not kept, which stay so.
static void drop_weights(const QueryBlock& block, float dropped) {
  const Plan& plan = block.plan;
  for (int64_t row = 0; row < block.count; row++) {
    const int64_t band = row / plan.rows;
    const BandKind kind = block.scratch.kinds[band];
    if (kind == kSkipped) continue;
    const int64_t count = kind == kChosenInRegisters ? kTile / 2 : plan.tile;
    const int64_t at = band * plan.rows * plan.tile + row % plan.rows * count;
    float* weights = block.scratch.scores + at;
    const float* factors = block.scratch.drops + at;
    for (int64_t i = 0; i < count; i++) {
      const float product = factors[i] > 0.0f ? weights[i] * factors[i] : dropped;
      weights[i] = weights[i] < 0.0f ? weights[i] : product;
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
