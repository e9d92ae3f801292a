// Which kept weights dropout leaves, by a counter-based generator (maths/dropout.py has the definition), so that
// forward and backward draw the same without storing it.
//
//     stream of a head  = first word of Philox4x32-10(counter = (head, batch, 0, 0), key = seed)
//     word of a pair    = first word of Philox2x32-10(counter = (key, query), key = stream)
//
// A pair is left where its word is at least drop_below. A round is one product of 32 × 32 bits to 64. Processors make
// such products for every other lane only, so a vector of pairs is taken apart into its even and its odd lanes, as
// lanes of 64 bits whose low halves count. They stay apart through all rounds: a product, a shift and two exclusive ors
// are a round then, and nothing is put together but the words at the end.
#pragma once

#include "simd/simd.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kPhiloxRounds = 10;

// One head's stream, as the keys of its rounds.
struct DropoutStream {
  Vec keys[kPhiloxRounds];
};

static uint32_t stream_of(uint64_t seed, uint32_t batch, uint32_t head) {
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

static inline DropoutStream open_stream(uint64_t seed, uint32_t batch, uint32_t head) {
  const uint32_t key = stream_of(seed, batch, head);
  DropoutStream stream;
  for (uint32_t round = 0; round < kPhiloxRounds; round++) {
    stream.keys[round] = broadcast_integer(static_cast<int32_t>(key + round * 0x9E3779B9u));
  }
  return stream;
}

// For kN vectors of keys, given as integers, and one query: a bit for each lane, set where the pair is left. One vector
// waits for its own products; two at once keep the multipliers busy.
template <int kN>
DYNATTN_INLINE void draw(const DropoutStream& stream, uint32_t query, Vec drop_below, const Vec keys[kN],
                         uint32_t left[kN]) {
  const Vec multiplier = broadcast_integer(static_cast<int32_t>(0xD256D193u));
  const Vec start = exclusive_or(stream.keys[0], broadcast_integer(static_cast<int32_t>(query)));
  Vec first[2 * kN], second[2 * kN];
#pragma GCC unroll 4
  for (int i = 0; i < 2 * kN; i++) {
    second[i] = multiply_halves(i % 2 ? high_halves(keys[i / 2]) : keys[i / 2], multiplier);
    first[i] = exclusive_or(high_halves(second[i]), start);
  }
#pragma GCC unroll 10
  for (int round = 1; round < kPhiloxRounds; round++) {
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kN; i++) {
      const Vec product = multiply_halves(first[i], multiplier);
      first[i] = exclusive_or(high_halves(product), exclusive_or(second[i], stream.keys[round]));
      second[i] = product;
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < kN; i++) left[i] = bits(reaches(join_halves(first[2 * i], first[2 * i + 1]), drop_below));
}

// The factors of one vector of weights.
DYNATTN_INLINE Vec drop_factors(uint32_t left, Vec keep_factor) { return select(mask_of(left), keep_factor, zero()); }

}  // namespace dynattn::DYNATTN_NAMESPACE
