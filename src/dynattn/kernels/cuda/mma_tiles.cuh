// Tiles in shared memory and the products of a warp with them, as the mma.sync kernels use them: forward and backward
// compute scores by the same instructions in the same order, so that they choose the same keys, bit for bit.
#pragma once

#include "choice.cuh"

namespace dynattn {

constexpr int MMA_WARPS = 4;
constexpr int MMA_KEYS = UNIT_KEYS;

// A tile in shared memory: rows of 16-byte chunks, padded to whole 128-byte lines, chunks permuted within a line. HEAD_DIM
// counts columns of two bytes, here and below.
template <int HEAD_DIM>
struct TileLayout {
  static constexpr int CHUNKS = HEAD_DIM / 8;
  static constexpr int PITCH = (CHUNKS + 7) / 8 * 128;  // bytes of a row
  // `key` is a number that differs among the eight rows that ldmatrix reads together, so that their banks differ.
  static DYNATTN_DEVICE u32 offset(int row, int chunk, int key) {
    return static_cast<u32>(row * PITCH + ((chunk ^ key) << 4));
  }
};

// Position r of an 8 x 8 matrix of K rows holds key 16 chunk + 4 (r / 2) + 2 half + r % 2 (choice.cuh).
DYNATTN_DEVICE int permuted_key(int chunk, int half, int r) { return 16 * chunk + 4 * (r >> 1) + 2 * half + (r & 1); }

// How the rows of a tile are read: in that order, in the natural one, in both (keys in the backward), or word by word
// (values in TF32).
enum class Rows { keys, others, keys_and_others, words };

// A number that differs among the eight rows that are read together. For both orders it is made of bit 0, bit 2 and the
// sum of bits 1 and 3, since the natural order runs through bits 0 to 2 and the permuted one through 0, 2 and 3.
template <Rows ROWS>
DYNATTN_DEVICE int swizzle_key(int row) {
  if constexpr (ROWS == Rows::keys) return ((row >> 1) & 6) | (row & 1);
  if constexpr (ROWS == Rows::others) return row & 7;
  if constexpr (ROWS == Rows::words) return ((row & 1) << 1) | (row & 4);  // four rows, two chunks of each
  return (row & 1) | ((row >> 1) & 2) | (((row << 1) ^ (row >> 1)) & 4);
}
// The same number for the row that holds permuted_key(…, half, r).
template <Rows ROWS>
DYNATTN_DEVICE int permuted_swizzle_key(int half, int r) {
  return ROWS == Rows::keys ? r : r ^ (half << 2);
}

// Starts the copy of COUNT rows; those from `rows_left` on and columns from `columns` on become 0. Each thread copies one
// 16-byte column of every 128-byte line (64, where lines are not full) in rows `step` apart: all its addresses are one of
// few row pointers and a constant. With a STRIDE, a row of the tile is a position, and holds the key that stands there.
template <int HEAD_DIM, Rows ROWS, int COUNT = MMA_KEYS, int STRIDE = 1>
DYNATTN_DEVICE void copy_tile(u32 target, const unsigned short* source, long long stride, int rows_left, int columns) {
  using Layout = TileLayout<HEAD_DIM>;
  constexpr int LINE = Layout::CHUNKS % 8 == 0 ? 8 : 4, STEP = 32 * MMA_WARPS / LINE;
  const int first_row = static_cast<int>(threadIdx.x) / LINE, column = static_cast<int>(threadIdx.x) % LINE;
  const int key = swizzle_key<ROWS>(first_row);  // also that of the rows a multiple of 16 further on
  const unsigned short* from = source + key_at<STRIDE>(first_row) * stride + 8 * column;
#pragma unroll
  for (int i = 0; i < COUNT / STEP; ++i) {
#pragma unroll
    for (int line = 0; line < Layout::CHUNKS / LINE; ++line) {
      const int row = first_row + i * STEP, chunk = line * LINE + column;
      const int source_row = key_at<STRIDE>(first_row) + key_at<STRIDE>(i * STEP);
      const bool valid = source_row < rows_left && 8 * chunk < columns;
      copy16_async(target + Layout::offset(row, chunk, key), valid ? from + 8 * line * LINE : source, valid);
    }
    from += (key_at<STRIDE>((i + 1) * STEP) - key_at<STRIDE>(i * STEP)) * stride;
  }
}

// s = A Bᵀ for a warp's 16 · ROW_TILES rows of A, which `rows` gives as fragments, and the 64 rows of the tile B at `keys`.
template <class Element, int HEAD_DIM, int ROW_TILES, Rows ROWS, class RowsOfA>
DYNATTN_DEVICE void compute_scores(Scores (&s)[ROW_TILES][1], const RowsOfA& rows, u32 keys, int lane) {
  const int r = lane & 7;
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
#pragma unroll
    for (int i = 0; i < 32; ++i) s[tile][0][i >> 4][(i >> 2) & 3][i & 3] = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < HEAD_DIM / 32; ++k) {  // 32 columns of the head at a time: one x4 load of K
    u32 a[ROW_TILES][2][4];
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile) {
      rows.get(tile, 2 * k, lane, a[tile][0]);
      rows.get(tile, 2 * k + 1, lane, a[tile][1]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int chunk = 0; chunk < 4; ++chunk) {
        u32 b[4];
        load_matrices(
            b, keys + TileLayout<HEAD_DIM>::offset(permuted_key(chunk, half, r), 4 * k + (lane >> 3),
                                                   permuted_swizzle_key<ROWS>(half, r)));
#pragma unroll
        for (int j = 0; j < 4; ++j) b[j] = Format<Element>::operand(b[j]);
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
          multiply_dense<Element>(s[tile][0][half][chunk], a[tile][0], b[0], b[1]);
          multiply_dense<Element>(s[tile][0][half][chunk], a[tile][1], b[2], b[3]);
        }
      }
    }
  }
}

// What the sparse product needs of 16 queries' weights on 64 keys.
struct Operand {
  u32 a[2][4];
  u32 metadata;
};

template <class Element>
DYNATTN_DEVICE Operand operand_of(const Survivors& weights, u32 metadata) {
  Operand operand;
  pack_operand<Element>(weights, 0, operand.a[0]);
  pack_operand<Element>(weights, 1, operand.a[1]);
  operand.metadata = metadata;
  return operand;
}

template <class Element, int HEAD_DIM, int ROW_TILES>
DYNATTN_DEVICE void add_weighted_values(float (&o)[ROW_TILES][HEAD_DIM / 8][4], const Operand (&weights)[ROW_TILES],
                                        u32 values, int lane) {
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; ++n) {
    u32 b[2][4];
#pragma unroll
    for (int step = 0; step < 2; ++step) {  // values in natural order: lane is the row
      load_matrices_transposed(b[step], values + TileLayout<HEAD_DIM>::offset(32 * step + lane, n, lane & 7));
    }
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile) {
      multiply_sparse<Element, 0>(o[tile][n], weights[tile].a[0], b[0], weights[tile].metadata);
      multiply_sparse<Element, 1>(o[tile][n], weights[tile].a[1], b[1], weights[tile].metadata);
    }
  }
}

}  // namespace dynattn
