// N:M attention, forward, for sm_90a: TMA copies, wgmma for the scores, wgmma.mma_async.sp for the weighted values.
//
// A block is two computing warpgroups of 64 queries each and one that only starts copies. Keys and values come in tiles
// of 128, two stages each. Q stays in registers and so do the weights: every byte of the shared-memory port is left to
// the operands K and V, which a sparse product reads as fast as the port gives them.
//
//     computing, tile i:   start S = Q Kᵀ of tile i | start O += P V of tile i - 1 | wait for S | mask, choose, weigh S
//                          | wait for O | pack P of tile i
//
// so that the choice and the exponentials of a tile run while the values of the tile before are multiplied. Tiles that
// end the keys, cross the diagonal or are touched by window or sinks are done apart, after all others (a softmax takes
// its tiles in any order): the loop above stays free of them.
//
// Columns of S hold keys as choice.cuh wants them: two boxes of K rows, {4i, 4i + 1} and {4i + 2, 4i + 3}, are copied one
// below the other, so that columns 8j + 2t + i of the lower and the upper half are keys 16j + 4t + i and 16j + 4t + 2 + i.
// With a stride the same holds of positions: then V's rows are copied by position too.
//
// Source: arXiv:2203.00091 (the method), arXiv:2407.08608 (the overlap of softmax and products).
#include "output.cuh"
#include "weights.cuh"
#include "wgmma_tiles.cuh"

namespace dynattn {

constexpr int WGMMA_KEYS = 128, WGMMA_UNITS = WGMMA_KEYS / UNIT_KEYS;
constexpr int STAGES = 2;
constexpr int PANEL_BYTES = WGMMA_KEYS * LINE_BYTES;  // 64 columns of a tile; wider tiles are panels side by side

// Shared memory: tiles of keys, of values, and a pair of barriers for each: filled (by the copy engine), free (by all
// computing warpgroups).
template <int HEAD_DIM>
struct Stages {
  static constexpr int TILE_BYTES = HEAD_DIM / LINE_COLUMNS * PANEL_BYTES;
  u32 base;

  DYNATTN_DEVICE u32 keys(int stage) const { return base + stage * TILE_BYTES; }
  DYNATTN_DEVICE u32 values(int stage) const { return base + (STAGES + stage) * TILE_BYTES; }
  DYNATTN_DEVICE u32 barriers() const { return base + 2 * STAGES * TILE_BYTES; }
  DYNATTN_DEVICE u32 keys_filled(int stage) const { return barriers() + 8 * stage; }
  DYNATTN_DEVICE u32 values_filled(int stage) const { return barriers() + 8 * (STAGES + stage); }
  DYNATTN_DEVICE u32 keys_free(int stage) const { return barriers() + 8 * (2 * STAGES + stage); }
  DYNATTN_DEVICE u32 values_free(int stage) const { return barriers() + 8 * (3 * STAGES + stage); }

  DYNATTN_DEVICE void init_barriers() const {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(keys_filled(stage), 1);
      barrier_init(values_filled(stage), 1);
      barrier_init(keys_free(stage), CONSUMERS);
      barrier_init(values_free(stage), CONSUMERS);
    }
    barrier_init_fence();
  }
};

// How often a stage has been used before the n-th tile, as the parity that barriers count in.
DYNATTN_DEVICE u32 parity(int n) { return static_cast<u32>(n / STAGES & 1); }

// The tiles of a block in the order in which all its warpgroups take them: plain ones, then edges.
template <MaskKind MASK, bool BAND>
struct TileOrder {
  const ForwardParams& p;
  int first_query, count;

  DYNATTN_DEVICE TileOrder(const ForwardParams& params, const Place& place)
      : p(params),
        first_query(place.first_query),
        count((keys_needed(params, place.first_query, CONSUMERS * CONSUMER_ROWS) + WGMMA_KEYS - 1) / WGMMA_KEYS) {}

  // Variants with a mask apply it to every tile, together with all limits, so that only the band makes edges there.
  DYNATTN_DEVICE bool is_edge(int tile) const {
    const int key0 = tile * WGMMA_KEYS;
    return (MASK == MaskKind::none && key0 + WGMMA_KEYS - 1 > last_key(p, first_query)) ||
           (BAND && band_touches(p, first_query, CONSUMERS * CONSUMER_ROWS, key0, WGMMA_KEYS));
  }
  // The next tile of a kind from `tile` on; `count` where there is none.
  DYNATTN_DEVICE int next(int tile, bool edge) const {
    while (tile < count && is_edge(tile) != edge) ++tile;
    return tile;
  }
};

// Starts the copies of one tile. Where keys stand in steps of STRIDE, a map's second dimension goes from one member of a
// group to the next, and its third from group to group: a box of 2 members is half of 64 positions of K, and a box of 4 is
// 64 positions of V.
template <int HEAD_DIM, int STRIDE>
struct Copies {
  static_assert(STRIDE == 1 || 4 * STRIDE == UNIT_KEYS);
  static constexpr int UNIT_BYTES = PANEL_BYTES / WGMMA_UNITS;
  const Stages<HEAD_DIM>& stages;
  const Place& place;

  DYNATTN_DEVICE void keys(int stage, int key0, const TensorMap& low, const TensorMap& high) const {
    const u32 filled = stages.keys_filled(stage);
    barrier_arrive_and_expect(filled, stages.TILE_BYTES);
    for (int panel = 0; panel < HEAD_DIM / LINE_COLUMNS; ++panel) {
      const u32 target = stages.keys(stage) + panel * PANEL_BYTES;
      const int column = panel * LINE_COLUMNS;
      if constexpr (STRIDE == 1) {
        copy_box(target, low, filled, column, 0, key0 / 4, place.kv_head, place.batch);
        copy_box(target + PANEL_BYTES / 2, high, filled, column, 0, key0 / 4, place.kv_head, place.batch);
      } else {
        for (int unit = 0; unit < WGMMA_UNITS; ++unit) {
          const int member = key0 / STRIDE + 4 * unit;
          const u32 half = target + unit * (UNIT_BYTES / 2);
          copy_box(half, low, filled, column, member, 0, place.kv_head, place.batch);
          copy_box(half + PANEL_BYTES / 2, high, filled, column, member + 2, 0, place.kv_head, place.batch);
        }
      }
    }
  }

  DYNATTN_DEVICE void values(int stage, int key0, const TensorMap& map) const {
    const u32 filled = stages.values_filled(stage);
    barrier_arrive_and_expect(filled, stages.TILE_BYTES);
    for (int panel = 0; panel < HEAD_DIM / LINE_COLUMNS; ++panel) {
      const u32 target = stages.values(stage) + panel * PANEL_BYTES;
      const int column = panel * LINE_COLUMNS;
      if constexpr (STRIDE == 1) {
        copy_box(target, map, filled, column, key0, place.kv_head, place.batch);
      } else {
        for (int unit = 0; unit < WGMMA_UNITS; ++unit) {
          copy_box(target + unit * UNIT_BYTES, map, filled, column, key0 / STRIDE + 4 * unit, 0, place.kv_head,
                   place.batch);
        }
      }
    }
  }
};

template <int HEAD_DIM, MaskKind MASK, bool BAND, int STRIDE>
DYNATTN_DEVICE void produce(const TileOrder<MASK, BAND>& order, const Stages<HEAD_DIM>& stages, const Place& place,
                            const TensorMap& key_low, const TensorMap& key_high, const TensorMap& value) {
  const Copies<HEAD_DIM, STRIDE> copies = {stages, place};
  int n = 0;
  for (int edge = 0; edge < 2; ++edge) {
    for (int tile = order.next(0, edge); tile < order.count; tile = order.next(tile + 1, edge), ++n) {
      const int stage = n % STAGES, key0 = tile * WGMMA_KEYS;
      barrier_wait(stages.keys_free(stage), parity(n) ^ 1);
      copies.keys(stage, key0, key_low, key_high);
      barrier_wait(stages.values_free(stage), parity(n) ^ 1);
      copies.values(stage, key0, value);
    }
  }
}

// The weights of 64 queries on 128 keys: A registers of the four products of 32 keys, and their metadata.
struct Weights {
  u32 a[WGMMA_KEYS / 32][4];
  u32 metadata[WGMMA_UNITS];
};

// What one computing warpgroup does.
template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool AUX, bool BAND, int STRIDE>
struct Consumer {
  const ForwardParams& p;
  const Place& place;
  const Stages<HEAD_DIM>& stages;
  const int first_query, query, lane;  // the warpgroup's first query; this thread's first of two; its place in the warp
  const bool elected;                  // one thread speaks for the warpgroup at the barriers
  const float scale, factor;
  const QuadLane quad;

  u32 q[HEAD_DIM / 16][4];
  float accumulators[16][4];  // S as the product leaves it
  float o[HEAD_DIM / 8][4];
  RunningSoftmax state;
  Survivors kept[WGMMA_UNITS];
  HalfMetadata metadata[WGMMA_UNITS][1];
  float correction[2];

  DYNATTN_DEVICE void load_queries() {
    const u32 signs = p.scale < 0.0f ? 0x80008000u : 0u;  // larger products stay larger scores
    const unsigned short* rows =
        rows_of(static_cast<const unsigned short*>(p.query), p.query_strides, place.batch, place.head);
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = query + 8 * (j & 1), column = 16 * k + 2 * (lane & 3) + 8 * (j >> 1);
        const bool valid = row < p.q_len && column < p.head_dim;
        q[k][j] = valid ? *reinterpret_cast<const u32*>(rows + row * p.query_strides[2] + column) ^ signs : 0u;
      }
    }
  }

  DYNATTN_DEVICE void start_scores(int n) {
    barrier_wait(stages.keys_filled(n % STAGES), parity(n));
    pin(accumulators);
    products_fence();
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k) {  // 16 columns are 32 bytes of a swizzled line
      const u32 keys = stages.keys(n % STAGES) + k / 4 * PANEL_BYTES + k % 4 * 32;
      multiply_scores<Element>(accumulators, q[k], descriptor(keys, 16, SWIZZLE_ATOM_BYTES), k > 0);
    }
    products_commit();
  }

  DYNATTN_DEVICE void start_values(int n, const Weights& weights) {
    barrier_wait(stages.values_filled(n % STAGES), parity(n));
    pin(o);
    products_fence();
#pragma unroll
    for (int step = 0; step < WGMMA_KEYS / 32; ++step) {  // 32 keys are 32 rows
      const u64 values = descriptor(stages.values(n % STAGES) + step * 32 * LINE_BYTES, PANEL_BYTES, SWIZZLE_ATOM_BYTES);
      if (step % 2 == 0) {
        multiply_values<Element, 0>(o, weights.a[step], values, weights.metadata[step / 2]);
      } else {
        multiply_values<Element, 1>(o, weights.a[step], values, weights.metadata[step / 2]);
      }
    }
    products_commit();
  }

  DYNATTN_DEVICE void release(u32 barrier) const {
    if (elected) barrier_arrive(barrier);
  }

  // The accumulators as units of 64 keys.
  DYNATTN_DEVICE void get_scores(Scores (&s)[WGMMA_UNITS]) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int half = i / 8, unit = i / 4 % 2, chunk = i % 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) s[unit][half][chunk][j] = accumulators[i][j];
    }
  }

  DYNATTN_DEVICE void mask_scores(Scores (&s)[WGMMA_UNITS], int key0) const {
#pragma unroll
    for (int unit = 0; unit < WGMMA_UNITS; ++unit) {
      apply_mask<Element, MASK, STRIDE>(s[unit], p, place, query, key0 + UNIT_KEYS * unit, lane, scale);
    }
  }

  // The operand registers: written only when no product that reads them is in flight.
  static DYNATTN_DEVICE void pack(const Survivors (&weights)[WGMMA_UNITS], Weights& operand) {
#pragma unroll
    for (int step = 0; step < WGMMA_KEYS / 32; ++step) {
      pack_operand<Element>(weights[step / 2], step % 2, operand.a[step]);
    }
  }

  // A tile that is not an edge: weighs its scores while the values of the tile before are multiplied.
  DYNATTN_DEVICE bool weigh(int key0) {
    Scores s[WGMMA_UNITS];
    get_scores(s);
    if constexpr (MASK != MaskKind::none) mask_scores(s, key0);
    u32 nibbles[WGMMA_UNITS];
    return sparse_weights<PATTERN, IS_BIAS<MASK>, AUX>(s, state, factor, quad, kept, nibbles, metadata, correction);
  }
  DYNATTN_DEVICE void finish_weights(Weights& weights) const {
    pack(kept, weights);
#pragma unroll
    for (int unit = 0; unit < WGMMA_UNITS; ++unit) weights.metadata[unit] = finish(metadata[unit][0], quad);
  }

  // All tiles that are not edges; returns how many.
  DYNATTN_DEVICE int plain_tiles(const TileOrder<MASK, BAND>& order) {
    int tile = order.next(0, false), n = 0;
    if (tile >= order.count) return 0;
    Weights weights;
    start_scores(0);
    products_wait<0>();
    pin(accumulators);
    release(stages.keys_free(0));
    weigh(tile * WGMMA_KEYS);  // O is 0: nothing to rescale
    finish_weights(weights);
    tile = order.next(tile + 1, false);
#pragma unroll 1
    for (n = 1; tile < order.count; tile = order.next(tile + 1, false), ++n) {
      start_scores(n);
      start_values(n - 1, weights);
      products_wait<1>();
      pin(accumulators);
      release(stages.keys_free(n % STAGES));
      const bool moved = weigh(tile * WGMMA_KEYS);
      products_wait<0>();
      pin(o);
      release(stages.values_free((n - 1) % STAGES));
      finish_weights(weights);
      if (moved) rescale(o, correction);
    }
    multiply_last(n - 1, weights);
    return n;
  }

  // Multiplies the values of tile n and waits.
  DYNATTN_DEVICE void multiply_last(int n, const Weights& weights) {
    start_values(n, weights);
    products_wait<0>();
    pin(o);
    release(stages.values_free(n % STAGES));
  }

  DYNATTN_DEVICE void edge_tiles(const TileOrder<MASK, BAND>& order, int n) {
#pragma unroll 1
    for (int tile = order.next(0, true); tile < order.count; tile = order.next(tile + 1, true), ++n) {
      const int key0 = tile * WGMMA_KEYS;
      start_scores(n);
      products_wait<0>();
      pin(accumulators);
      release(stages.keys_free(n % STAGES));
      Scores s[WGMMA_UNITS];
      get_scores(s);
      mask_scores(s, key0);
      Weights weights;
      if (BAND && band_touches(p, first_query, CONSUMER_ROWS, key0, WGMMA_KEYS)) {
        Survivors pairs[2][WGMMA_UNITS];
        if (band_weights<PATTERN, IS_BIAS<MASK>, AUX, STRIDE, 1>(s, state, factor, p, query, key0, lane, pairs,
                                                              correction)) {
          rescale(o, correction);
        }
        pack(pairs[0], weights);
        set_metadata(weights, LOWER_PAIRS);
        start_values(n, weights);
        products_wait<0>();
        pin(o);
        pack(pairs[1], weights);
        set_metadata(weights, UPPER_PAIRS);
      } else {
        u32 nibbles[WGMMA_UNITS];
        if (sparse_weights<PATTERN, IS_BIAS<MASK>, AUX>(s, state, factor, quad, kept, nibbles, metadata, correction)) {
          rescale(o, correction);
        }
        finish_weights(weights);
      }
      multiply_last(n, weights);
    }
  }

  static DYNATTN_DEVICE void set_metadata(Weights& weights, u32 value) {
#pragma unroll
    for (int unit = 0; unit < WGMMA_UNITS; ++unit) weights.metadata[unit] = value;
  }
};

template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool AUX, bool BAND, int STRIDE>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    nm_forward_wgmma(const ForwardParams p, const DYNATTN_GRID_CONSTANT TensorMap key_low,
                     const DYNATTN_GRID_CONSTANT TensorMap key_high, const DYNATTN_GRID_CONSTANT TensorMap value) {
  DYNATTN_SHARED_MEMORY(shared, 1024);
  const Stages<HEAD_DIM> stages = {(shared_address(shared) + 1023) / 1024 * 1024};
  const Place place = place_of_block(p, blockIdx.x, CONSUMERS * CONSUMER_ROWS);
  const TileOrder<MASK, BAND> order(p, place);
  const int thread = threadIdx.x, group = thread / WARPGROUP, lane = thread % 32;
  if (!is_wanted(p, place, CONSUMERS * CONSUMER_ROWS, lane)) return;
  if (thread == 0) stages.init_barriers();
  block_barrier();

  if (group == CONSUMERS) {
    shrink_registers<PRODUCER_REGISTERS>();
    if (thread % WARPGROUP == 0) {
      produce<HEAD_DIM, MASK, BAND, STRIDE>(order, stages, place, key_low, key_high, value);
    }
  } else {
    grow_registers<CONSUMER_REGISTERS>();
    const int first_query = place.first_query + CONSUMER_ROWS * group, warp_row = 16 * (thread / 32 % 4);
    const float scale = p.scale < 0.0f ? -p.scale : p.scale, score_scale = IS_BIAS<MASK> ? 1.0f : scale;
    Consumer<Element, HEAD_DIM, PATTERN, MASK, AUX, BAND, STRIDE> consumer = {
        p, place, stages, first_query, first_query + warp_row + lane / 4, lane, thread % WARPGROUP == 0,
        scale, score_scale * LOG2_E, quad_lane(lane)};
    consumer.load_queries();
    consumer.edge_tiles(order, consumer.plain_tiles(order));
    if (p.row_sums != nullptr) {
      write_row_sums(p, place, consumer.state, first_query + warp_row, lane);
      return;
    }
    const u32 leaked = write_rows<Element, AUX, false>(p, place, consumer.state, consumer.o, first_query + warp_row, 0,
                                                  score_scale, lane);
    if (leaked) {
      repair_rows<Element, HEAD_DIM, PATTERN, MASK, BAND, STRIDE, false>(p, place, first_query + warp_row, leaked, lane);
    }
  }
}

}  // namespace dynattn
