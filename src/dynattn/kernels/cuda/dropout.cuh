// Dropout of kept weights: which pairs it drops, from a counter-based generator, so that forward and backward draw the same
// without storing it, on every device (maths/dropout.py has the definition).
//
//     stream     = first word of Philox4x32-10(counter = (head, batch, 0, 0), key = seed)
//     word(i, j) = first word of Philox2x32-10(counter = (j, i), key = stream),      dropped where it is below p · 2^32
//
// Only survivors are drawn for. j is the key itself, wherever the tile holds it, so that a pair's fate depends on nothing
// but seed, batch, head, i and j. The seed is read from device memory: a captured graph draws anew when it is written.
#pragma once

#include "mask.cuh"

namespace dynattn {

constexpr int PHILOX_ROUNDS = 10;

DYNATTN_DEVICE u32 upper_word(u64 x) { return static_cast<u32>(x >> 32); }

DYNATTN_DEVICE u32 dropout_stream(u64 seed, u32 batch, u32 head) {
  u32 a = head, b = batch, c = 0, d = 0, key_a = static_cast<u32>(seed), key_c = upper_word(seed);
#pragma unroll
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const u64 of_a = static_cast<u64>(a) * 0xD2511F53u, of_c = static_cast<u64>(c) * 0xCD9E8D57u;
    a = upper_word(of_c) ^ b ^ key_a;
    c = upper_word(of_a) ^ d ^ key_c;
    b = static_cast<u32>(of_c);
    d = static_cast<u32>(of_a);
    key_a += 0x9E3779B9u;
    key_c += 0xBB67AE85u;
  }
  return a;
}

DYNATTN_DEVICE u32 dropout_word(u32 stream, u32 query, u32 key) {
  u32 first = key, second = query;
#pragma unroll
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const u64 product = static_cast<u64>(first) * 0xD256D193u;
    first = upper_word(product) ^ stream ^ second;
    second = static_cast<u32>(product);
    stream += 0x9E3779B9u;
  }
  return first;
}

// The draws of one head. In a variant without DROPOUT nothing is read and nothing is computed.
template <bool DROPOUT, int STRIDE>
struct Dropout {
  const ForwardParams& p;
  u32 stream = 0;

  DYNATTN_DEVICE Dropout(const ForwardParams& params, int batch, int head) : p(params) {
    if constexpr (DROPOUT) {
      stream = dropout_stream(static_cast<u64>(*p.seed), static_cast<u32>(p.first_batch + batch),
                              static_cast<u32>(p.first_head + head));
    }
  }

  DYNATTN_DEVICE bool drops(int query, int key) const {
    return DROPOUT && dropout_word(stream, static_cast<u32>(query), static_cast<u32>(key)) < p.drop_below;
  }
  // What dropout multiplies the pair's weight by.
  DYNATTN_DEVICE float factor(int query, int key) const {
    if constexpr (!DROPOUT) return 1.0f;
    return drops(query, key) ? 0.0f : p.keep_factor;
  }

  // Weights of 16 queries' survivors among 64 keys: 0 where dropped. What is left is multiplied by 1 / (1 - p) with the
  // row's whole sum, at its end.
  DYNATTN_DEVICE void drop(Survivors& weights, u32 nibbles, int query, int key0, int lane) const {
    if constexpr (DROPOUT) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int chunk = i >> 2, row = (i >> 1) & 1;
        float& weight = weights[chunk][row][i & 1];
        const int key = key0 + survivor_key<STRIDE>(nibbles, chunk, row, i & 1, lane);
        weight = drops(query + 8 * row, key) ? 0.0f : weight;
      }
    }
  }
};

}  // namespace dynattn
