// The sparse product of TF32 weights with V: what mma_tiles.cuh has for 16-bit elements.
//
// A lane holds, of the 16 columns of the sparse operand, those of positions 2t and 2t + 1 and the two that stand 8
// further: these are the accumulators of two n-tiles, in natural order. So with K permuted as for 16-bit elements
// (choice.cuh), half h of chunks 2s and 2s + 1 is one product, and the rows of V that it takes are those positions: row
// k of B is position 32 s + 8 j + 4 (k / 2 % 2) + 2 h + k % 2 for k = 4 j + t. V is read word by word; Rows::words
// keeps the four rows that are read together in different banks.
#pragma once

#include "mma_tiles.cuh"

namespace dynattn {

// What the four products of 16 queries' weights with 64 keys need: product 2 * half + selector.
struct WordOperand {
  u32 a[4][4];
  u32 metadata[2];  // a word for each half
};

DYNATTN_DEVICE WordOperand word_operand(const Survivors& weights, const u32 (&metadata)[2]) {
  WordOperand operand;
#pragma unroll
  for (int product = 0; product < 4; ++product) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      operand.a[product][j] = TensorFloat32::round(weights[2 * (product & 1) + (j >> 1)][j & 1][product >> 1]);
    }
  }
  operand.metadata[0] = metadata[0];
  operand.metadata[1] = metadata[1];
  return operand;
}

template <int COLUMNS>
DYNATTN_DEVICE void load_value_words(u32 (&b)[4], u32 values, int n, int product, int lane) {
  const int g = lane >> 2, t = lane & 3;
  u32 addresses[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int row = 32 * (product & 1) + 8 * j + 2 * (product >> 1) + 4 * (t >> 1) + (t & 1);
    addresses[j] = values + TileLayout<COLUMNS>::offset(row, 2 * n + (g >> 2), swizzle_key<Rows::words>(row)) + g % 4 * 4;
  }
  load_words(b, addresses);
#pragma unroll
  for (int j = 0; j < 4; ++j) b[j] = Format<TensorFloat32>::operand(b[j]);
}

template <class Element, int HEAD_DIM, int ROW_TILES>
DYNATTN_DEVICE void add_weighted_values(float (&o)[ROW_TILES][HEAD_DIM / 8][4],
                                        const WordOperand (&weights)[ROW_TILES], u32 values, int lane) {
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      u32 b[2][4];
      load_value_words<2 * HEAD_DIM>(b[0], values, n, 2 * half, lane);
      load_value_words<2 * HEAD_DIM>(b[1], values, n, 2 * half + 1, lane);
#pragma unroll
      for (int tile = 0; tile < ROW_TILES; ++tile) {
        multiply_sparse<Element, 0>(o[tile][n], weights[tile].a[2 * half], b[0], weights[tile].metadata[half]);
        multiply_sparse<Element, 1>(o[tile][n], weights[tile].a[2 * half + 1], b[1], weights[tile].metadata[half]);
      }
    }
  }
}

}  // namespace dynattn
