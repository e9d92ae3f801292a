// N:M attention, forward, for sm_80 and later: mma.sync for the scores, mma.sp for the weighted sum of values.
//
//     s = scale · QKᵀ + bias,   kept = N largest of every M keys (and window, sinks),   out = softmax(s | kept) V
//
// A block of 4 warps holds 64 · ROW_TILES queries, 16 · ROW_TILES a warp, and walks over the keys in tiles of 64:
//
//     scores of the tile (registers) -> masks -> choice -> weights of the survivors (-> dropout) -> O += weights · V
//
// Copies overlap with arithmetic in one buffer each for keys and values: values of the tile arrive while its scores are
// computed, keys of the next while its values are summed. One buffer, because it is occupancy that hides the rest.
// ROW_TILES = 2 lets every fragment of K and V that is read from shared memory serve two products; with 1, reading V for
// the sparse product would take longer than the product (256 bytes a cycle needed, 128 there).
//
// Source: arXiv:2203.00091 (the method), arXiv:2205.14135 and 2307.08691 (online softmax, the order of the loop).
#include "mma_tiles.cuh"
#include "output.cuh"
#include "tf32_tiles.cuh"
#include "weights.cuh"

namespace dynattn {

// A warp's queries as operand A of the scores' product, k-step by k-step: in registers where they fit beside the
// accumulators, else in shared memory. The sign of a negative scale is folded in, so that larger products stay larger
// scores. COLUMNS counts columns of two bytes.
template <class Element, int COLUMNS, int ROW_TILES>
struct Queries {
  static constexpr bool IN_REGISTERS = COLUMNS * ROW_TILES <= 128;
  using Layout = TileLayout<COLUMNS>;
  using Raw = typename Format<Element>::Raw;

  u32 fragment[ROW_TILES][IN_REGISTERS ? COLUMNS / 16 : 1][4];
  u32 shared;  // this warp's rows

  DYNATTN_DEVICE void load(const ForwardParams& p, const Place& place, u32 shared_base, unsigned char* shared_pointer,
                           int warp, int lane) {
    const u32 signs = p.scale < 0.0f ? Format<Element>::SIGNS : 0u;
    const Raw* rows = rows_of(static_cast<const Raw*>(p.query), p.query_strides, place.batch, place.head);
    const auto register_of = [&](int query, int column) -> u32 {
      column /= Format<Element>::HALVES;
      if (query >= p.q_len || column >= p.head_dim) return 0u;
      return Format<Element>::operand(*reinterpret_cast<const u32*>(rows + query * p.query_strides[2] + column)) ^ signs;
    };
    const int first = place.first_query + 16 * ROW_TILES * warp;
    if constexpr (IN_REGISTERS) {
#pragma unroll
      for (int tile = 0; tile < ROW_TILES; ++tile) {
#pragma unroll
        for (int k = 0; k < COLUMNS / 16; ++k) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            fragment[tile][k][j] =
                register_of(first + 16 * tile + (lane >> 2) + 8 * (j & 1), 16 * k + 2 * (lane & 3) + 8 * (j >> 1));
          }
        }
      }
    } else {  // a warp reads only what it writes here: no barrier but the loop's first
      const int warp_offset = 16 * ROW_TILES * warp * Layout::PITCH;
      shared = shared_base + warp_offset;
      for (int i = lane; i < 16 * ROW_TILES * COLUMNS / 2; i += 32) {
        const int row = i / (COLUMNS / 2), column = i % (COLUMNS / 2) * 2;
        *reinterpret_cast<u32*>(shared_pointer + warp_offset + Layout::offset(row, column / 8, row & 7) +
                                column % 8 * 2) = register_of(first + row, column);
      }
    }
  }

  DYNATTN_DEVICE void get(int tile, int k, int lane, u32 (&a)[4]) const {
    if constexpr (IN_REGISTERS) {
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] = fragment[tile][k][j];
    } else {
      load_matrices(a, shared + Layout::offset(16 * tile + (lane & 15), 2 * k + (lane >> 4), lane & 7));
    }
  }
};

// Where a block's tiles come from and go to.
template <class Element, int COLUMNS, int STRIDE>
struct Tiles {
  using Raw = typename Format<Element>::Raw;
  static constexpr int BYTES = MMA_KEYS * TileLayout<COLUMNS>::PITCH, HALVES = Format<Element>::HALVES;
  static constexpr Rows VALUE_ROWS = HALVES == 1 ? Rows::others : Rows::words;
  const ForwardParams& p;
  const Raw *key_rows, *value_rows;
  u32 keys, values;

  DYNATTN_DEVICE Tiles(const ForwardParams& params, const Place& place, u32 shared)
      : p(params),
        key_rows(rows_of(static_cast<const Raw*>(params.key), params.key_strides, place.batch, place.kv_head)),
        value_rows(rows_of(static_cast<const Raw*>(params.value), params.value_strides, place.batch, place.kv_head)),
        keys(shared),
        values(shared + BYTES) {}
  template <Rows ROWS>
  DYNATTN_DEVICE void copy(u32 target, const Raw* rows, long long stride, int key0, int columns) const {
    copy_tile<COLUMNS, ROWS, MMA_KEYS, STRIDE>(target, reinterpret_cast<const unsigned short*>(rows + key0 * stride),
                                               stride * HALVES, p.kv_len - key0, columns * HALVES);
  }
  DYNATTN_DEVICE void copy_keys(int key0) const {
    copy<Rows::keys>(keys, key_rows, p.key_strides[2], key0, p.head_dim);
  }
  DYNATTN_DEVICE void copy_values(int key0) const {
    copy<VALUE_ROWS>(values, value_rows, p.value_strides[2], key0, p.value_dim);
  }
};

// Weights as the sparse product of an element type takes them.
template <class Element>
DYNATTN_DEVICE void set_operand(Operand& operand, const Survivors& weights, const u32 (&metadata)[1]) {
  operand = operand_of<Element>(weights, metadata[0]);
}
template <class Element>
DYNATTN_DEVICE void set_operand(WordOperand& operand, const Survivors& weights, const u32 (&metadata)[2]) {
  operand = word_operand(weights, metadata);
}
template <class Element>
struct OperandOf {
  using Type = Operand;
};
template <>
struct OperandOf<TensorFloat32> {
  using Type = WordOperand;
};

// What a warp holds of its 16 · ROW_TILES queries.
template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool AUX, bool BAND, int ROW_TILES, int STRIDE,
          bool DROPOUT>
struct QueryRows {
  const ForwardParams& p;
  const Place& place;
  const int first_query, lane;
  const float scale, factor;  // `factor` turns differences of scores into exponents of 2
  const QuadLane quad;
  const Dropout<DROPOUT, STRIDE> dropout;
  RunningSoftmax state[ROW_TILES];
  float o[ROW_TILES][HEAD_DIM / 8][4];

  static constexpr int WORDS = Format<Element>::WORDS;
  using Operands = typename OperandOf<Element>::Type;

  static DYNATTN_DEVICE void set(Operands& operand, const Survivors& weights, u32 metadata) {
    u32 words[WORDS];
#pragma unroll
    for (int word = 0; word < WORDS; ++word) words[word] = metadata;
    set_operand<Element>(operand, weights, words);
  }

  // Masks and weighs the scores of 16 queries; `upper` is filled in tiles that are `dense`.
  DYNATTN_DEVICE void weigh(Scores (&s)[1], int tile, int key0, bool edge, bool dense, Operands& weights,
                            Operands& upper) {
    const int query = first_query + 16 * tile + (lane >> 2);
    if (edge) apply_mask<Element, MASK, STRIDE>(s[0], p, place, query, key0, lane, scale);
    float correction[2];
    bool moved;
    if (dense) {
      Survivors pairs[2][1];
      moved = band_weights<PATTERN, IS_BIAS<MASK>, AUX, STRIDE, WORDS>(s, state[tile], factor, p, query, key0, lane,
                                                                       pairs, correction);
      dropout.drop(pairs[0][0], WORDS == 1 ? LOWER_PAIRS : FIRST_OF_PAIRS, query, key0, lane);
      dropout.drop(pairs[1][0], WORDS == 1 ? UPPER_PAIRS : SECOND_OF_PAIRS, query, key0, lane);
      set(weights, pairs[0][0], LOWER_PAIRS);
      set(upper, pairs[1][0], UPPER_PAIRS);
    } else {
      Survivors kept[1];
      HalfMetadata metadata[1][WORDS];
      u32 nibbles[1];
      moved = sparse_weights<PATTERN, IS_BIAS<MASK>, AUX>(s, state[tile], factor, quad, kept, nibbles, metadata,
                                                          correction);
      dropout.drop(kept[0], nibbles[0], query, key0, lane);
      u32 words[WORDS];
#pragma unroll
      for (int word = 0; word < WORDS; ++word) words[word] = finish(metadata[0][word], quad);
      set_operand<Element>(weights, kept[0], words);
    }
    if (moved) rescale(o[tile], correction);
  }

  // A tile whose scores are there, once its values are.
  DYNATTN_DEVICE void add_tile(Scores (&s)[ROW_TILES][1], int key0, u32 values) {
    const bool edge = MASK != MaskKind::none || key0 + MMA_KEYS - 1 > last_key(p, first_query);
    constexpr bool NO_SPARSE_FORM = WORDS == 2 && PATTERN == Pattern::two_of_four;
    const bool dense = NO_SPARSE_FORM || (BAND && band_touches(p, first_query, 16 * ROW_TILES, key0, MMA_KEYS));
    Operands weights[ROW_TILES], upper[ROW_TILES];
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile) {
      weigh(s[tile], tile, key0, edge, dense, weights[tile], upper[tile]);
    }
    add_weighted_values<Element, HEAD_DIM>(o, weights, values, lane);
    if (dense) add_weighted_values<Element, HEAD_DIM>(o, upper, values, lane);
  }

  DYNATTN_DEVICE void write_sums() const {
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile) write_row_sums(p, place, state[tile], first_query + 16 * tile, lane);
  }
  DYNATTN_DEVICE void write(float score_scale) const {
    u32 leaked = 0;
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile) {
      leaked |= write_rows<Element, AUX, DROPOUT>(p, place, state[tile], o[tile], first_query + 16 * tile, tile,
                                                  score_scale, lane);
    }
    if (leaked) {
      repair_rows<Element, HEAD_DIM, PATTERN, MASK, BAND, STRIDE, DROPOUT>(p, place, first_query, leaked, lane);
    }
  }
};

template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool AUX, bool BAND, int ROW_TILES, int STRIDE,
          bool DROPOUT>
__global__ void __launch_bounds__(32 * MMA_WARPS) nm_forward_mma(const ForwardParams p) {
  constexpr int WARP_ROWS = 16 * ROW_TILES, COLUMNS = HEAD_DIM * Format<Element>::HALVES;
  DYNATTN_SHARED_MEMORY(shared, 128);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Place place = place_of_block(p, blockIdx.x, MMA_WARPS * WARP_ROWS);
  if (!is_wanted(p, place, MMA_WARPS * WARP_ROWS, lane)) return;
  const Tiles<Element, COLUMNS, STRIDE> tiles(p, place, shared_address(shared));
  const int key_end = keys_needed(p, place.first_query, MMA_WARPS * WARP_ROWS);
  if (key_end > 0) tiles.copy_keys(0);
  Queries<Element, COLUMNS, ROW_TILES> queries;
  queries.load(p, place, tiles.values + tiles.BYTES, shared + 2 * tiles.BYTES, warp, lane);
  const float scale = p.scale < 0.0f ? -p.scale : p.scale, score_scale = IS_BIAS<MASK> ? 1.0f : scale;
  QueryRows<Element, HEAD_DIM, PATTERN, MASK, AUX, BAND, ROW_TILES, STRIDE, DROPOUT> rows = {
      p, place, place.first_query + WARP_ROWS * warp, lane, scale, score_scale * LOG2_E, quad_lane(lane),
      {p, place.batch, place.head}};

#pragma unroll 1
  for (int key0 = 0; key0 < key_end; key0 += MMA_KEYS) {
    copies_wait();
    block_barrier();  // keys are there, and no warp reads values any more
    tiles.copy_values(key0);
    Scores s[ROW_TILES][1];
    compute_scores<Element, COLUMNS, ROW_TILES, Rows::keys>(s, queries, tiles.keys, lane);
    copies_wait();
    block_barrier();  // values are there, and no warp reads keys any more
    if (key0 + MMA_KEYS < key_end) tiles.copy_keys(key0 + MMA_KEYS);
    rows.add_tile(s, key0, tiles.values);
  }
  if (p.row_sums != nullptr) {
    rows.write_sums();
  } else {
    rows.write(score_scale);
  }
}

}  // namespace dynattn
