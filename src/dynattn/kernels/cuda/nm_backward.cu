// N:M attention, backward, for sm_80 and later: gradients of query, key, value and bias with the forward's choice.
//
//     S = scale · QKᵀ + bias,  P = exp(S - logsumexp | kept),  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP - D),
//     dQ = scale · dS K,  dK = scale · dSᵀ Q                       (D from nm_backward_rows.cu)
//
// A block owns some tiles of 64 keys of one head of keys. For each it walks over the queries of all heads that share the
// keys, 64 · ROW_TILES at a time, 16 · ROW_TILES a warp:
//
//     S, choice, P, dP, dS (registers) -> P and dS to shared memory | dV += Pᵀ dO, dK += dSᵀ Q | dQ += dS K
//
// S comes from the forward's own code, so the choice is the forward's, bit for bit. Dropout draws again what the forward
// drew (dropout.cuh): dP and the P of dV are multiplied by its factors. dQ is a sparse product: dS stands in
// registers as the forward's weights do, and the forward's metadata serves it. In dV and dK keys are rows of the result
// and queries are summed over, an axis along which nothing is regular: P and dS go in spread out, with zeros, densely.
//
// dQ is summed in device memory, by this block alone into sums of its own (`query_sums`), every element always by the
// same thread: no atomics, the same bits in every run.
//
// Heads wider than 128 columns are done in two parts, since dK and dV would not fit in registers: two blocks compute S
// and dP of the same tiles, and each the gradients of half the columns.
//
// Source: arXiv:2203.00091 (the method), arXiv:2307.08691 (the order of the loop).
#include "backward_order.cuh"
#include "backward_weights.cuh"
#include "mma_tiles.cuh"

namespace dynattn {

template <int HEAD_DIM, int ROW_TILES>
struct BackwardTiles {
  static constexpr int QUERIES = 16 * MMA_WARPS * ROW_TILES;
  static constexpr int PARTS = HEAD_DIM > 128 ? 2 : 1, COLUMNS = HEAD_DIM / PARTS;  // columns of a block's gradients
  static constexpr int KEY_BYTES = MMA_KEYS * TileLayout<HEAD_DIM>::PITCH;
  static constexpr int QUERY_BYTES = QUERIES * TileLayout<HEAD_DIM>::PITCH;
  static constexpr int PAIR_BYTES = QUERIES * PairLayout::PITCH;
  static constexpr int KEYS = 0, VALUES = KEY_BYTES, ROWS = 2 * KEY_BYTES, GRADS = ROWS + QUERY_BYTES,
                       WEIGHTS = GRADS + QUERY_BYTES, SCORES = WEIGHTS + PAIR_BYTES;  // offsets
};

DYNATTN_DEVICE BackwardPlace backward_place(const BackwardParams& p, int block, int parts) {
  const int task = block / parts, pair = task / p.splits;
  return {block % parts, task % p.splits, pair / p.forward.kv_heads, pair % p.forward.kv_heads};
}

// A warp's rows of a tile as operand A of compute_scores().
template <int HEAD_DIM>
struct SharedRows {
  u32 address;
  DYNATTN_DEVICE void get(int tile, int k, int lane, u32 (&a)[4]) const {
    load_matrices(a, address + TileLayout<HEAD_DIM>::offset(16 * tile + (lane & 15), 2 * k + (lane >> 4), lane & 7));
  }
};

// dV += Pᵀ dO or dK += dSᵀ Q: a warp sums 32 keys by half of the block's columns over the queries of the tile.
template <int HEAD_DIM, int COLUMNS>
struct KeyGradients {
  static constexpr int FRAGMENTS = COLUMNS / 2 / 8;
  float sum[2][FRAGMENTS][4];

  static DYNATTN_DEVICE int first_key(int warp) { return 32 * (warp & 1); }
  static DYNATTN_DEVICE int first_column(int part, int warp) { return part * COLUMNS + (warp >> 1) * (COLUMNS / 2); }

  DYNATTN_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 8 * FRAGMENTS; ++i) sum[i / (4 * FRAGMENTS)][i / 4 % FRAGMENTS][i % 4] = 0.0f;
  }

  template <class Element, int QUERIES>
  DYNATTN_DEVICE void add(u32 pairs, u32 rows, int part, int warp, int lane) {
    const int first_chunk = first_key(warp) / 8, matrix = lane >> 3;
#pragma unroll 1
    for (int query = 0; query < QUERIES; query += 32) {
      u32 a[2][2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // 16 keys and 16 queries each; stored by query, so transposed
        load_matrices_transposed(a[i >> 1][i & 1],
                                 pairs + PairLayout::offset(query + 16 * (i & 1) + 8 * (matrix >> 1) + (lane & 7),
                                                            first_chunk + 2 * (i >> 1) + (matrix & 1)));
      }
#pragma unroll
      for (int n = 0; n < FRAGMENTS; ++n) {
        u32 b[4];
        load_matrices_transposed(
            b, rows + TileLayout<HEAD_DIM>::offset(query + lane, first_column(part, warp) / 8 + n, lane & 7));
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          multiply_dense<Element>(sum[tile][n], a[tile][0], b[0], b[1]);
          multiply_dense<Element>(sum[tile][n], a[tile][1], b[2], b[3]);
        }
      }
    }
  }

  // Writes rows key0 … of [batch, kv_heads, kv_len, columns], multiplied by `factor`.
  template <class Element, int STRIDE>
  DYNATTN_DEVICE void write(void* base, const long long (&strides)[3], const BackwardPlace& block, int key0, int kv_len,
                            int columns, float factor, int warp) const {
    const int lane = lane_now();
    unsigned short* rows = rows_of(static_cast<unsigned short*>(base), strides, block.batch, block.kv_head);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = key0 + key_at<STRIDE>(first_key(warp) + 8 * i + (lane >> 2));
      if (key >= kv_len) continue;
#pragma unroll
      for (int n = 0; n < FRAGMENTS; ++n) {
        const int column = first_column(block.part, warp) + 8 * n + 2 * (lane & 3);
        const float(&pair)[4] = sum[i >> 1][n];
        if (column >= columns) continue;
        *reinterpret_cast<u32*>(rows + key * strides[2] + column) =
            Element::pack(pair[2 * (i & 1)] * factor, pair[2 * (i & 1) + 1] * factor);
      }
    }
  }
};

struct alignas(16) Accumulator {
  float c[4];
};

// query_sums += dS K for a warp's queries, BATCH fragments of 8 columns at a time, in accumulators that come from device
// memory and go back there. The first batch is asked for early, while dV and dK are computed.
template <int HEAD_DIM, int COLUMNS, int ROW_TILES>
struct QueryGradients {
  static constexpr int BATCH = 4, FRAGMENTS = COLUMNS / 8;
  static_assert(FRAGMENTS % BATCH == 0, "whole batches");
  Accumulator sum[ROW_TILES][BATCH];
  Accumulator* memory;  // this lane's first accumulator
  int row_tiles;        // how many tiles of 16 rows hold queries

  DYNATTN_DEVICE QueryGradients(const BackwardParams& p, const BackwardPlace& block, int head, int first_query,
                                int lane) {
    const ForwardParams& f = p.forward;
    const int row_blocks = (f.q_len + 15) / 16;
    const long long pair = (static_cast<long long>(block.split) * f.batch + block.batch) * f.heads + head;
    const long long fragment = (pair * row_blocks + first_query / 16) * (HEAD_DIM / 8) + block.part * FRAGMENTS;
    memory = reinterpret_cast<Accumulator*>(p.query_sums) + fragment * 32 + lane;
    row_tiles = row_blocks - first_query / 16;
    load(0);
  }

  template <class Element>
  DYNATTN_DEVICE void add(const Operand (&gradients)[ROW_TILES], const Operand (&upper)[ROW_TILES], bool dense, u32 keys,
                          int part, int lane) {
#pragma unroll
    for (int first = 0; first < FRAGMENTS; first += BATCH) {
      if (first > 0) load(first);
#pragma unroll
      for (int n = 0; n < BATCH; ++n) {
        u32 b[2][4];
#pragma unroll
        for (int step = 0; step < 2; ++step) {  // keys in natural order: lane is the row
          load_matrices_transposed(b[step],
                                   keys + TileLayout<HEAD_DIM>::offset(32 * step + lane, part * FRAGMENTS + first + n,
                                                                       swizzle_key<Rows::keys_and_others>(lane)));
        }
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
          float(&c)[4] = sum[tile][n].c;
          multiply_sparse<Element, 0>(c, gradients[tile].a[0], b[0], gradients[tile].metadata);
          multiply_sparse<Element, 1>(c, gradients[tile].a[1], b[1], gradients[tile].metadata);
          if (!dense) continue;
          multiply_sparse<Element, 0>(c, upper[tile].a[0], b[0], upper[tile].metadata);
          multiply_sparse<Element, 1>(c, upper[tile].a[1], b[1], upper[tile].metadata);
        }
      }
      each(first, [](const Accumulator& sum, Accumulator& memory) { memory = sum; });
    }
  }

 private:
  DYNATTN_DEVICE void load(int first) {
    each(first, [](Accumulator& sum, const Accumulator& memory) { sum = memory; });
  }
  template <class Move>
  DYNATTN_DEVICE void each(int first, Move move) {
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile) {
      if (tile >= row_tiles) continue;
#pragma unroll
      for (int n = 0; n < BATCH; ++n) move(sum[tile][n], memory[(tile * (HEAD_DIM / 8) + first + n) * 32]);
    }
  }
};

DYNATTN_DEVICE Operand operand_of_packed(const PackedSurvivors& packed, u32 metadata) {
  Operand operand;
#pragma unroll
  for (int i = 0; i < 8; ++i) operand.a[i >> 2][i & 3] = packed[i >> 1][i & 1];
  operand.metadata = metadata;
  return operand;
}

// One warp's part of a tile: the choice, P and dS of 16 · ROW_TILES queries and 64 keys, into shared memory and, for dQ,
// into operands. `upper` is filled where `dense`.
template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool BAND, int ROW_TILES, int STRIDE, bool DROPOUT>
DYNATTN_DEVICE void weights_and_gradients(const BackwardParams& p, const Place& place, int first_query, int key0,
                                          unsigned char* shared_pointer, u32 shared, bool dense, int warp, int lane,
                                          Operand (&gradients)[ROW_TILES], Operand (&upper)[ROW_TILES]) {
  using Tiles = BackwardTiles<HEAD_DIM, ROW_TILES>;
  constexpr int SETS = BAND ? 2 : 1;
  const ForwardParams& f = p.forward;
  const float factor = (IS_BIAS<MASK> ? 1.0f : f.scale) * LOG2_E;
  const QuadLane quad = quad_lane(lane);
  const Dropout<DROPOUT, STRIDE> dropout(f, place.batch, place.head);
  const int warp_row = 16 * ROW_TILES * warp;
  const u32 warp_rows = shared + warp_row * TileLayout<HEAD_DIM>::PITCH;

  TwoRows terms[ROW_TILES];
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
    terms[tile] = load_row_terms(p, place.row0, place.first_query, first_query + 16 * tile + (lane >> 2));
  }
  Scores s[ROW_TILES][1];
  compute_scores<Element, HEAD_DIM, ROW_TILES, Rows::keys_and_others>(
      s, SharedRows<HEAD_DIM>{warp_rows + Tiles::ROWS}, shared + Tiles::KEYS, lane);
  const bool edge = MASK != MaskKind::none || key0 + MMA_KEYS - 1 > last_key(f, first_query);
  Kept kept[ROW_TILES][SETS];
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
    const int query = first_query + 16 * tile + (lane >> 2);
    if (edge) apply_mask<Element, MASK, STRIDE>(s[tile][0], f, place, query, key0, lane, f.scale);
    if (dense) {
      Survivors dropped[2];
      split_by_choice_and_band<PATTERN, STRIDE>(s[tile][0], f, query, key0, lane, kept[tile][0].s,
                                                kept[tile][SETS - 1].s, dropped[0], dropped[1]);
      kept[tile][0].nibbles = LOWER_PAIRS;
      kept[tile][SETS - 1].nibbles = UPPER_PAIRS;
      weigh(kept[tile][SETS - 1].s, terms[tile], factor);
    } else {
      kept[tile][0].nibbles = choose<PATTERN>(s[tile][0], kept[tile][0].s);
    }
    weigh(kept[tile][0].s, terms[tile], factor);
  }

  Scores products[ROW_TILES][1];
  compute_scores<Element, HEAD_DIM, ROW_TILES, Rows::keys>(products, SharedRows<HEAD_DIM>{warp_rows + Tiles::GRADS},
                                                           shared + Tiles::VALUES, lane);
#pragma unroll
  for (int tile = 0; tile < ROW_TILES; ++tile) {
    const int query = first_query + 16 * tile + (lane >> 2);
    PackedSurvivors weights[2] = {}, packed[2] = {};
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      if (set > 0 && !dense) continue;
      Kept& one = kept[tile][set];
      Survivors ds;
      if (dense) {
        differentiate<Pattern::two_of_four>(one, products[tile][0], terms[tile], dropout, query, key0, lane, ds);
      } else {
        differentiate<PATTERN>(one, products[tile][0], terms[tile], dropout, query, key0, lane, ds);
      }
      if (IS_BIAS<MASK> && p.d_mask != nullptr) {
        write_mask_gradients<STRIDE>(p, one, ds, place.row0, place.first_query, query, key0, lane);
      }
      pack_survivors<Element>(one.s, weights[set]);
      pack_survivors<Element>(ds, packed[set]);
    }
    const int row = warp_row + 16 * tile;
    store_pairs<PATTERN>(shared_pointer + Tiles::WEIGHTS, row, weights[0], kept[tile][0].nibbles, dense, weights[1], lane);
    store_pairs<PATTERN>(shared_pointer + Tiles::SCORES, row, packed[0], kept[tile][0].nibbles, dense, packed[1], lane);
    const u32 metadata = dense ? LOWER_PAIRS : finish(exchange(kept[tile][0].nibbles, quad), quad);
    gradients[tile] = operand_of_packed(packed[0], metadata);
    upper[tile] = operand_of_packed(packed[1], UPPER_PAIRS);
  }
}

// Copies of a block's tiles into shared memory.
template <int HEAD_DIM, int ROW_TILES, int STRIDE>
struct Copies {
  using Tiles = BackwardTiles<HEAD_DIM, ROW_TILES>;
  const BackwardParams& p;
  const BackwardPlace& block;
  u32 shared;

  DYNATTN_DEVICE void keys(int key0) const {
    const ForwardParams& f = p.forward;
    const int left = f.kv_len - key0;
    copy_tile<HEAD_DIM, Rows::keys_and_others, MMA_KEYS, STRIDE>(
        shared + Tiles::KEYS, first_row(f.key, f.key_strides, block.kv_head, key0), f.key_strides[2], left, f.head_dim);
    copy_tile<HEAD_DIM, Rows::keys, MMA_KEYS, STRIDE>(shared + Tiles::VALUES,
                                                      first_row(f.value, f.value_strides, block.kv_head, key0),
                                                      f.value_strides[2], left, f.value_dim);
  }
  DYNATTN_DEVICE void queries(const Place& place) const {
    const ForwardParams& f = p.forward;
    const int query = place.first_query, left = f.q_len - query;
    copy_tile<HEAD_DIM, Rows::others, Tiles::QUERIES>(shared + Tiles::ROWS,
                                                      first_row(f.query, f.query_strides, place.head, query),
                                                      f.query_strides[2], left, f.head_dim);
    copy_tile<HEAD_DIM, Rows::others, Tiles::QUERIES>(shared + Tiles::GRADS,
                                                      first_row(p.grad_out, p.grad_out_strides, place.head, query),
                                                      p.grad_out_strides[2], left, f.value_dim);
  }

 private:
  DYNATTN_DEVICE const unsigned short* first_row(const void* base, const long long (&strides)[3], int head,
                                                 int row) const {
    return rows_of(static_cast<const unsigned short*>(base), strides, block.batch, head) + row * strides[2];
  }
};

template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool BAND, int ROW_TILES, int STRIDE, bool DROPOUT>
__global__ void __launch_bounds__(32 * MMA_WARPS) nm_backward_mma(const BackwardParams p) {
  using Tiles = BackwardTiles<HEAD_DIM, ROW_TILES>;
  constexpr int QUERIES = Tiles::QUERIES, COLUMNS = Tiles::COLUMNS, WARP_ROWS = 16 * ROW_TILES;
  DYNATTN_SHARED_MEMORY(shared_pointer, 128);
  const ForwardParams& f = p.forward;
  const int warp = threadIdx.x / 32;
  const BackwardPlace block = backward_place(p, blockIdx.x, Tiles::PARTS);
  const u32 shared = shared_address(shared_pointer);
  const Copies<HEAD_DIM, ROW_TILES, STRIDE> copies = {p, block, shared};
#pragma unroll 1
  for (int key0 = block.split * MMA_KEYS; key0 < f.kv_len; key0 += p.splits * MMA_KEYS) {
    QueryTiles tiles(f, block.kv_head, key0, QUERIES);
    KeyGradients<HEAD_DIM, COLUMNS> d_key, d_value;
    d_key.clear();
    d_value.clear();
    block_barrier();  // no warp reads the tile of keys before this one any more
    if (tiles.more()) {
      copies.keys(key0);
      copies.queries(tiles.place(f, block, QUERIES));
    }
#pragma unroll 1
    while (tiles.more()) {
      const Place place = tiles.place(f, block, QUERIES);
      const int first_query = place.first_query + WARP_ROWS * warp, lane = lane_now();
      const bool dense = BAND && band_touches(f, first_query, WARP_ROWS, key0, MMA_KEYS);
      copies_wait();
      block_barrier();  // queries and gradients are there
      Operand gradients[ROW_TILES], upper[ROW_TILES];
      weights_and_gradients<Element, HEAD_DIM, PATTERN, MASK, BAND, ROW_TILES, STRIDE, DROPOUT>(
          p, place, first_query, key0, shared_pointer, shared, dense, warp, lane, gradients, upper);
      QueryGradients<HEAD_DIM, COLUMNS, ROW_TILES> d_query(p, block, place.head, first_query, lane);
      block_barrier();  // P and dS are there
      d_value.template add<Element, QUERIES>(shared + Tiles::WEIGHTS, shared + Tiles::GRADS, block.part, warp, lane);
      d_key.template add<Element, QUERIES>(shared + Tiles::SCORES, shared + Tiles::ROWS, block.part, warp, lane);
      block_barrier();  // no warp reads queries, gradients, P or dS any more
      tiles.advance();
      if (tiles.more()) copies.queries(tiles.place(f, block, QUERIES));
      d_query.template add<Element>(gradients, upper, dense, shared + Tiles::KEYS, block.part, lane);
    }
    d_key.template write<Element, STRIDE>(p.d_key, p.d_key_strides, block, key0, f.kv_len, f.head_dim, f.scale, warp);
    d_value.template write<Element, STRIDE>(p.d_value, p.d_value_strides, block, key0, f.kv_len, f.value_dim, 1.0f, warp);
  }
}

}  // namespace dynattn
