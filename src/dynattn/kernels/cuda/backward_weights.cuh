// From a tile's scores S and products dP = dO Vᵀ to the kept weights P and their gradients dS, 16 queries by 64 keys.
//
//     P = exp(s - logsumexp),   dS = P ∘ (dP - D),   D = Σ dO · O - grad_logsumexp = Σ P ∘ dP - grad_logsumexp
//
// with a logsumexp in two numbers where one does not tell enough (row_sums.cuh).
//
// With dropout's factors Z, 0 or 1 / (1 - p), dP becomes Z ∘ dP in both, and dV sums P ∘ Z.
//
// Only survivors are exponentiated and differentiated. A survivor's place in its group of four comes from the same
// nibble that is the metadata of the sparse product; a tile that window or sinks touch is two sets of survivors, all lower
// and all upper pairs, as in the forward.
#pragma once

#include "backward_params.cuh"
#include "dropout.cuh"
#include "softmax.cuh"

namespace dynattn {

// A word holds the kept entries of two neighbouring keys, packed as the sparse product takes them or spread out.
using PackedSurvivors = u32[4][2];  // [chunk][row]
struct alignas(8) FourKeys {
  u32 low, high;
};

// What a thread holds for 16 queries: the terms of rows g and g + 8.
struct TwoRows {
  float origin[2], shift[2];
  float product[2];  // D
};

DYNATTN_DEVICE TwoRows load_row_terms(const BackwardParams& p, long long row0, int first_query, int query) {
  TwoRows rows;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    RowTerms terms = {0.0f, INFINITY_F, 0.0f};
    if (query + 8 * row < p.forward.q_len) terms = p.row_terms[row0 + (query + 8 * row - first_query)];
    rows.origin[row] = terms.origin;
    rows.shift[row] = terms.shift;
    rows.product[row] = terms.product;
  }
  return rows;
}

// One set of survivors: it holds their scores first and their weights afterwards.
struct Kept {
  Survivors s;
  u32 nibbles;  // the nibble of chunk c and row r begins at bit 4 c + 16 r
};

// Scores become P.
DYNATTN_DEVICE void weigh(Survivors& s, const TwoRows& terms, float factor) {
  if (terms.origin[0] != 0.0f || terms.origin[1] != 0.0f) {
#pragma unroll
    for (int i = 0; i < 16; ++i) s[i >> 2][(i >> 1) & 1][i & 1] -= terms.origin[(i >> 1) & 1];
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    float& x = s[i >> 2][(i >> 1) & 1][i & 1];
    x = exp2_fast(multiply_add(x, factor, -terms.shift[(i >> 1) & 1]));
  }
}

DYNATTN_DEVICE u32 nibble_of(u32 nibbles, int chunk, int row) { return (nibbles >> (4 * chunk + 16 * row)) & 15; }

// Picks, from the products of a group of four keys, those of the two keys that the nibble names.
template <Pattern PATTERN>
DYNATTN_DEVICE void products_of_survivors(const float (&group)[4], u32 nibble, float (&pair)[2]) {
  if constexpr (PATTERN == Pattern::one_of_two) {
    pair[0] = nibble & 1 ? group[1] : group[0];
    pair[1] = nibble & 4 ? group[3] : group[2];
  } else {
    const u32 first = nibble & 3, second = nibble >> 2;
    pair[0] = first == 0 ? group[0] : first == 1 ? group[1] : group[2];
    pair[1] = second == 3 ? group[3] : second == 2 ? group[2] : group[1];
  }
}

// dS of the survivors, 16 queries from `query` by 64 keys from `key0`; P becomes P ∘ Z. A forbidden key's product may be
// anything, NaN too: a weight of 0 has gradient 0.
template <Pattern PATTERN, bool DROPOUT, int STRIDE>
DYNATTN_DEVICE void differentiate(Kept& kept, const Scores& products, const TwoRows& terms,
                                  const Dropout<DROPOUT, STRIDE>& dropout, int query, int key0, int lane,
                                  Survivors& gradients) {
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float group[4] = {products[0][chunk][2 * row], products[0][chunk][2 * row + 1],
                              products[1][chunk][2 * row], products[1][chunk][2 * row + 1]};
      float pair[2];
      products_of_survivors<PATTERN>(group, nibble_of(kept.nibbles, chunk, row), pair);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& weight = kept.s[chunk][row][i];
        const int key = key0 + survivor_key<STRIDE>(kept.nibbles, chunk, row, i, lane);
        const float z = dropout.factor(query + 8 * row, key);
        gradients[chunk][row][i] = weight == 0.0f ? 0.0f : weight * (z * pair[i] - terms.product[row]);
        weight *= z;
      }
    }
  }
}

template <class Element>
DYNATTN_DEVICE void pack_survivors(const Survivors& s, PackedSurvivors& packed) {
#pragma unroll
  for (int i = 0; i < 8; ++i) packed[i >> 1][i & 1] = Element::pack(s[i >> 1][i & 1][0], s[i >> 1][i & 1][1]);
}

// Puts two stored entries at their places among four, with zeros elsewhere. A selector names, from the right, where each
// byte comes from: 0 to 3 stand for the pair, 4 for a zero.
template <Pattern PATTERN>
DYNATTN_DEVICE FourKeys spread(u32 pair, u32 nibble) {
  constexpr u32 FIRST_LOW = 0x4410, FIRST_HIGH = 0x1044, SECOND_LOW = 0x4432, SECOND_HIGH = 0x3244, BOTH = 0x3210,
                NONE = 0x4444;
  u32 low, high;
  if constexpr (PATTERN == Pattern::one_of_two) {
    low = nibble & 1 ? FIRST_HIGH : FIRST_LOW;
    high = nibble & 4 ? SECOND_HIGH : SECOND_LOW;
  } else {
    const u32 first = nibble & 3, second = nibble >> 2;
    low = first == 0 ? (second == 1 ? BOTH : FIRST_LOW) : first == 1 ? FIRST_HIGH : NONE;
    high = second == 3 ? (first == 2 ? BOTH : SECOND_HIGH) : second == 2 ? SECOND_LOW : NONE;
  }
  return {permute_bytes(pair, 0u, low), permute_bytes(pair, 0u, high)};
}

// The tile of P or dS in shared memory: a row of 64 keys is 128 bytes, a query each. The swizzle key is the row's number
// with its bits turned by one: no two of the eight rows that ldmatrix reads fall into the same bank, and neither do two of
// the four that are stored at once.
struct PairLayout {
  static constexpr int PITCH = 128;
  static DYNATTN_DEVICE u32 offset(int row, int chunk) {
    const int key = ((row << 1) | ((row >> 2) & 1)) & 7;
    return static_cast<u32>(row * PITCH + ((chunk ^ key) << 4));
  }
};

// Stores a warp's 16 rows, from `first_row` on; `upper` is the second set of a dense tile.
template <Pattern PATTERN>
DYNATTN_DEVICE void store_pairs(unsigned char* tile, int first_row, const PackedSurvivors& pairs, u32 nibbles, bool dense,
                                const PackedSurvivors& upper, int lane) {
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      FourKeys keys = {pairs[chunk][row], upper[chunk][row]};
      if (!dense) keys = spread<PATTERN>(pairs[chunk][row], nibble_of(nibbles, chunk, row));
      const u32 offset = PairLayout::offset(first_row + (lane >> 2) + 8 * row, 2 * chunk + ((lane >> 1) & 1));
      *reinterpret_cast<FourKeys*>(tile + offset + 8 * (lane & 1)) = keys;
    }
  }
}

// The bias's gradient is dS; what no set of survivors holds stays 0.
template <int STRIDE>
DYNATTN_DEVICE void write_mask_gradients(const BackwardParams& p, const Kept& kept, const Survivors& gradients,
                                         long long row0, int first_query, int query, int key0, int lane) {
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if (query + 8 * row >= p.forward.q_len) continue;
      float* out = p.d_mask + (row0 + (query + 8 * row - first_query)) * p.forward.kv_len;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = key0 + survivor_key<STRIDE>(kept.nibbles, chunk, row, i, lane);
        if (key < p.forward.kv_len) out[key] = gradients[chunk][row][i];
      }
    }
  }
}

}  // namespace dynattn
