// Dropout of kept weights: factors 0 or 1 / (1 - p), from a counter-based generator (reference/dropout.py has the
// definition), so that forward and backward draw the same without storing it.
#pragma once

#include "common/dtypes.h"

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

}  // namespace dynattn::DYNATTN_NAMESPACE
