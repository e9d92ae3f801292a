// N:M attention, backward, for sm_90a: what nm_backward.cu computes, with TMA copies and products of a warpgroup.
//
//     S = QKᵀ,  dP = dO Vᵀ  (64 queries by 64 keys)  ->  choice, P, dS  ->  dQ += dS K (sparse),  dV += Pᵀ dO,  dK += dSᵀ Q
//
// A block is two computing warpgroups and one that only starts copies. A computing warpgroup owns UNITS times 64 keys, as
// many as fit: dV and dK fill 128 of its 240 registers, whatever the head_dim. It walks over the queries of all heads that
// share the keys, 64 at a time. Both warpgroups read the same queries, and have nothing else to do with each other: no
// barrier joins them, and while one chooses and exponentiates, the other one's products run.
//
// K and V stand in shared memory with their rows permuted, as the forward has K: then the choice is made in registers,
// and the gradients of the products (dP) stand in the same lanes as the scores. dS in registers is the sparse operand of
// dQ, whose B, K by rows, stands there a second time in natural order. P and dS are also written to shared memory, spread
// out with zeros: their columns remain in the permuted order, in which stmatrix meets no bank twice, and of dV and dK,
// whose rows they become, row 8 (2 c + h) + 2 t + i is key 16 c + 4 t + 2 h + i.
//
// dQ is added to sums in device memory that belong to one warpgroup of one block, every element by the same thread each
// time: its additions to one address happen in order, so the same bits come out of every run.
//
// Source: arXiv:2203.00091 (the method), arXiv:2407.08608 (warpgroups that copy and that compute).
#include "backward_order.cuh"
#include "backward_weights.cuh"
#include "wgmma_tiles.cuh"

namespace dynattn {

constexpr int PANEL_BYTES = UNIT_KEYS * LINE_BYTES;  // 64 rows of 64 columns

// Shared memory. Every tile has 64 rows; of the keys, and so of P and dS, there is one for each unit of a block.
template <int HEAD_DIM>
struct BackwardShared {
  static constexpr int UNITS = 128 / HEAD_DIM, BLOCK_UNITS = CONSUMERS * UNITS, STAGES = 3;
  static constexpr int PANELS = HEAD_DIM / LINE_COLUMNS, TILE_BYTES = PANELS * PANEL_BYTES;
  u32 base;

  DYNATTN_DEVICE u32 keys(int unit) const { return base + unit * TILE_BYTES; }  // permuted
  DYNATTN_DEVICE u32 keys_in_order(int unit) const { return keys(BLOCK_UNITS + unit); }
  DYNATTN_DEVICE u32 values(int unit) const { return keys(2 * BLOCK_UNITS + unit); }  // permuted
  DYNATTN_DEVICE u32 queries(int stage) const { return keys(3 * BLOCK_UNITS + 2 * stage); }
  DYNATTN_DEVICE u32 grads(int stage) const { return keys(3 * BLOCK_UNITS + 2 * stage + 1); }
  DYNATTN_DEVICE u32 weights(int unit) const { return queries(STAGES) + 2 * unit * PANEL_BYTES; }
  DYNATTN_DEVICE u32 score_grads(int unit) const { return weights(unit) + PANEL_BYTES; }
  DYNATTN_DEVICE u32 keys_filled() const { return weights(BLOCK_UNITS); }
  DYNATTN_DEVICE u32 keys_free() const { return keys_filled() + 8; }
  DYNATTN_DEVICE u32 filled(int stage) const { return keys_filled() + 16 + 8 * stage; }
  DYNATTN_DEVICE u32 free(int stage) const { return filled(STAGES + stage); }

  DYNATTN_DEVICE void init_barriers() const {
    barrier_init(keys_filled(), 1);
    barrier_init(keys_free(), CONSUMERS);
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(filled(stage), 1);
      barrier_init(free(stage), CONSUMERS);
    }
    barrier_init_fence();
  }
};

// Which stage comes next, and how often it has been used, as the parity that barriers count in.
template <int STAGES>
struct Ring {
  int stage = 0;
  u32 parity = 0;

  DYNATTN_DEVICE void advance() {
    if (++stage < STAGES) return;
    stage = 0;
    parity ^= 1;
  }
};

// The work of a block: tiles of keys b, b + s, … of a head, where s blocks share it. Splits count warpgroups.
template <int HEAD_DIM>
struct BackwardWork {
  static constexpr int WARPGROUP_KEYS = BackwardShared<HEAD_DIM>::UNITS * UNIT_KEYS, KEYS = CONSUMERS * WARPGROUP_KEYS;
  BackwardPlace block;
  int first_key, key_step;

  DYNATTN_DEVICE BackwardWork(const BackwardParams& p, int index) {
    const int blocks = p.splits / CONSUMERS, pair = index / blocks, split = index % blocks;
    block = {0, split * CONSUMERS, pair / p.forward.kv_heads, pair % p.forward.kv_heads};
    first_key = split * KEYS;
    key_step = blocks * KEYS;
  }
};

struct BackwardMaps {  // of keys and values, one for each half of a chunk
  const TensorMap &key_low, &key_high, &key, &value_low, &value_high, &query, &grad_out;
};

template <int HEAD_DIM, int STRIDE>
struct BackwardCopies {
  using Shared = BackwardShared<HEAD_DIM>;
  static_assert(STRIDE == 1 || 4 * STRIDE == UNIT_KEYS);
  const BackwardParams& p;
  const BackwardPlace& block;
  const Shared& shared;
  const BackwardMaps& maps;

  DYNATTN_DEVICE void keys(int key0) const {
    barrier_arrive_and_expect(shared.keys_filled(), 3 * Shared::BLOCK_UNITS * Shared::TILE_BYTES);
    for (int unit = 0; unit < Shared::BLOCK_UNITS; ++unit) {
      for (int panel = 0; panel < Shared::PANELS; ++panel) {
        const int first = key0 + unit * UNIT_KEYS, offset = panel * PANEL_BYTES, column = panel * LINE_COLUMNS;
        half(shared.keys(unit) + offset, maps.key_low, column, first, 0);
        half(shared.keys(unit) + offset + PANEL_BYTES / 2, maps.key_high, column, first, 2);
        half(shared.values(unit) + offset, maps.value_low, column, first, 0);
        half(shared.values(unit) + offset + PANEL_BYTES / 2, maps.value_high, column, first, 2);
        const u32 target = shared.keys_in_order(unit) + offset, filled = shared.keys_filled();
        if constexpr (STRIDE == 1) {
          copy_box(target, maps.key, filled, column, first, block.kv_head, block.batch);
        } else {
          copy_box(target, maps.key, filled, column, first / STRIDE, 0, block.kv_head, block.batch);
        }
      }
    }
  }

  DYNATTN_DEVICE void queries(int stage, const Place& place) const {
    const u32 filled = shared.filled(stage);
    barrier_arrive_and_expect(filled, 2 * Shared::TILE_BYTES);
    for (int panel = 0; panel < Shared::PANELS; ++panel) {
      const int offset = panel * PANEL_BYTES, column = panel * LINE_COLUMNS;
      copy_box(shared.queries(stage) + offset, maps.query, filled, column, place.first_query, place.head, place.batch);
      copy_box(shared.grads(stage) + offset, maps.grad_out, filled, column, place.first_query, place.head, place.batch);
    }
  }

 private:
  // Two of every four rows (positions), from `member` on, of a unit.
  DYNATTN_DEVICE void half(u32 target, const TensorMap& map, int column, int first, int member) const {
    const u32 filled = shared.keys_filled();
    if constexpr (STRIDE == 1) {  // the map begins at the member
      copy_box(target, map, filled, column, 0, first / 4, block.kv_head, block.batch);
    } else {
      copy_box(target, map, filled, column, first / STRIDE + member, 0, block.kv_head, block.batch);
    }
  }
};

template <int HEAD_DIM, int STRIDE>
DYNATTN_DEVICE void produce(const BackwardParams& p, const BackwardWork<HEAD_DIM>& work,
                            const BackwardShared<HEAD_DIM>& shared, const BackwardMaps& maps) {
  const BackwardCopies<HEAD_DIM, STRIDE> copies = {p, work.block, shared, maps};
  Ring<BackwardShared<HEAD_DIM>::STAGES> ring;
  u32 parity = 0;
  for (int key0 = work.first_key; key0 < p.forward.kv_len; key0 += work.key_step, parity ^= 1) {
    barrier_wait(shared.keys_free(), parity ^ 1);
    copies.keys(key0);
    for (QueryTiles tiles(p.forward, work.block.kv_head, key0, CONSUMER_ROWS); tiles.more(); tiles.advance()) {
      barrier_wait(shared.free(ring.stage), ring.parity ^ 1);
      copies.queries(ring.stage, tiles.place(p.forward, work.block, CONSUMER_ROWS));
      ring.advance();
    }
  }
}

// What one computing warpgroup does.
template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, int STRIDE>
struct BackwardConsumer {
  using Shared = BackwardShared<HEAD_DIM>;
  static constexpr int UNITS = Shared::UNITS, FRAGMENTS = HEAD_DIM / 8;
  const BackwardParams& p;
  const BackwardPlace& block;
  const Shared& shared;
  const int group, warp;  // of the block, of the warpgroup

  float d_key[UNITS][FRAGMENTS][4], d_value[UNITS][FRAGMENTS][4];
  PackedSurvivors gradients[UNITS];  // dS of the tile at hand
  u32 metadata[UNITS];

  DYNATTN_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < UNITS * FRAGMENTS * 4; ++i) {
      d_key[i / (FRAGMENTS * 4)][i / 4 % FRAGMENTS][i % 4] = d_value[i / (FRAGMENTS * 4)][i / 4 % FRAGMENTS][i % 4] = 0.0f;
    }
  }

  DYNATTN_DEVICE void release(u32 barrier) const {
    if (warp == 0 && lane_now() == 0) barrier_arrive(barrier);
  }

  // A tile whose rows are summed over.
  static DYNATTN_DEVICE u64 rows_of_tile(u32 address) { return descriptor(address, PANEL_BYTES, SWIZZLE_ATOM_BYTES); }

  // d = A Bᵀ of two tiles whose rows hold columns of the head.
  static DYNATTN_DEVICE void start_products(float (&d)[8][4], u32 a, u32 b) {
    const u64 first_a = descriptor(a, 16, SWIZZLE_ATOM_BYTES), first_b = descriptor(b, 16, SWIZZLE_ATOM_BYTES);
    pin(d);
    products_fence();
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k) {  // 16 columns are 32 bytes of a swizzled line
      const int offset = k / 4 * PANEL_BYTES + k % 4 * 32;
      multiply_shared<Element, false>(d, advanced(first_a, offset), advanced(first_b, offset), k > 0);
    }
    products_commit();
  }

  // d += Aᵀ B, summed over 64 queries, which are the rows of both.
  static DYNATTN_DEVICE void add_over_queries(float (&d)[FRAGMENTS][4], u32 a, u32 b) {
    const u64 first_a = rows_of_tile(a), first_b = rows_of_tile(b);
#pragma unroll
    for (int k = 0; k < CONSUMER_ROWS / 16; ++k) {
      const int offset = k * 16 * LINE_BYTES;
      multiply_shared<Element, true>(d, advanced(first_a, offset), advanced(first_b, offset), true);
    }
  }

  // Accumulators as the choice names them: 64 columns are the lower and the upper half of four chunks.
  static DYNATTN_DEVICE void get_scores(const float (&d)[8][4], Scores& s) {
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i / 16][i / 4 % 4][i % 4] = d[i / 4][i % 4];
  }

  // This warp's 16 rows of P or dS.
  DYNATTN_DEVICE void store_spread(u32 panel, const PackedSurvivors& pairs, u32 nibbles) const {
    const int lane = lane_now(), row = 16 * warp + (lane & 15);
    const u32 address = panel + row * LINE_BYTES, swizzle = static_cast<u32>((lane >> 4) ^ (lane & 7)) << 4;
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
      const FourKeys keys[2] = {spread<PATTERN>(pairs[chunk][0], nibble_of(nibbles, chunk, 0)),
                                spread<PATTERN>(pairs[chunk][1], nibble_of(nibbles, chunk, 1))};
      store_matrices(address + (swizzle ^ (chunk << 5)), keys[0].low, keys[1].low, keys[0].high, keys[1].high);
    }
  }

  // The choice, P and dS of 64 queries and unit `unit` of this warpgroup's keys.
  DYNATTN_DEVICE void weigh_unit(const Place& place, const RowTerms& terms, int query, int key0, int stage, int unit) {
    const ForwardParams& f = p.forward;
    const int tile = group * UNITS + unit, lane = lane_now();
    float products[8][4], value_products[8][4];
    start_products(products, shared.queries(stage), shared.keys(tile));
    start_products(value_products, shared.grads(stage), shared.values(tile));
    products_wait<1>();
    pin(products);
    Scores s;
    get_scores(products, s);
    if (MASK != MaskKind::none || key0 + UNIT_KEYS - 1 > last_key(f, place.first_query)) {
      apply_mask<Element, MASK, STRIDE>(s, f, place, query, key0, lane, f.scale);
    }
    Kept kept;
    kept.nibbles = choose<PATTERN>(s, kept.s);
    const QuadLane quad = quad_lane(lane);
    metadata[unit] = finish(exchange(kept.nibbles, quad), quad);
    weigh<IS_BIAS<MASK>>(kept.s, terms, IS_BIAS<MASK> ? 1.0f : f.scale * LOG2_E);
    PackedSurvivors weights;
    pack_survivors<Element>(kept.s, weights);
    store_spread(shared.weights(tile), weights, kept.nibbles);
    products_wait<0>();
    pin(value_products);
    get_scores(value_products, s);
    Survivors ds;
    differentiate<PATTERN>(kept, s, terms, Dropout<false, STRIDE>(f, 0, 0), query, key0, lane, ds);
    if (IS_BIAS<MASK> && p.d_mask != nullptr) {
      write_mask_gradients<STRIDE>(p, kept, ds, place.row0, place.first_query, query, key0, lane);
    }
    pack_survivors<Element>(ds, gradients[unit]);
    store_spread(shared.score_grads(tile), gradients[unit], kept.nibbles);
  }

  // dQ = dS K of the tile, over all of this warpgroup's keys.
  DYNATTN_DEVICE void start_query_gradients(float (&d_query)[FRAGMENTS][4]) const {
#pragma unroll
    for (int unit = 0; unit < UNITS; ++unit) {
      const u64 first_keys = rows_of_tile(shared.keys_in_order(group * UNITS + unit));
#pragma unroll
      for (int step = 0; step < 2; ++step) {  // of 32 keys
        const u32 (&pairs)[4][2] = gradients[unit];
        const u32 a[4] = {pairs[2 * step][0], pairs[2 * step][1], pairs[2 * step + 1][0], pairs[2 * step + 1][1]};
        const u64 keys = advanced(first_keys, step * 32 * LINE_BYTES);
        if (step == 0) {
          multiply_values<Element, 0>(d_query, a, keys, metadata[unit], unit > 0);
        } else {
          multiply_values<Element, 1>(d_query, a, keys, metadata[unit]);
        }
      }
    }
    products_commit();
  }

  // Adds a warp's 16 rows to this warpgroup's sums, laid out as accumulators are.
  DYNATTN_DEVICE void add_query_gradients(const float (&d_query)[FRAGMENTS][4], const Place& place) const {
    const ForwardParams& f = p.forward;
    const int row_blocks = (f.q_len + 15) / 16, row_block = place.first_query / 16 + warp;
    if (row_block >= row_blocks) return;
    const long long pair = (static_cast<long long>(block.split + group) * f.batch + place.batch) * f.heads + place.head;
    float* sums = p.query_sums + ((pair * row_blocks + row_block) * FRAGMENTS * 32 + lane_now()) * 4;
#pragma unroll
    for (int n = 0; n < FRAGMENTS; ++n) add_to_memory(sums + n * 128, d_query[n]);
  }

  DYNATTN_DEVICE void add_tile(const Place& place, int key0, int stage) {
    const int query = place.first_query + 16 * warp + lane_now() / 4;
    const RowTerms terms =
        load_row_terms(p, place.row0, place.first_query, query, IS_BIAS<MASK> ? 1.0f : LOG2_E);
#pragma unroll
    for (int unit = 0; unit < UNITS; ++unit) {
      weigh_unit(place, terms, query, key0 + unit * UNIT_KEYS, stage, unit);
    }
    stores_fence();
    warpgroup_barrier(1 + group);  // P and dS are there
    float d_query[FRAGMENTS][4];
    pin(d_query);
#pragma unroll
    for (int unit = 0; unit < UNITS; ++unit) {
      pin(d_value[unit]);
      pin(d_key[unit]);
    }
    products_fence();
    start_query_gradients(d_query);
#pragma unroll
    for (int unit = 0; unit < UNITS; ++unit) {
      add_over_queries(d_value[unit], shared.weights(group * UNITS + unit), shared.grads(stage));
      add_over_queries(d_key[unit], shared.score_grads(group * UNITS + unit), shared.queries(stage));
    }
    products_commit();
    products_wait<1>();
    pin(d_query);
    add_query_gradients(d_query, place);
    products_wait<0>();
#pragma unroll
    for (int unit = 0; unit < UNITS; ++unit) {
      pin(d_value[unit]);
      pin(d_key[unit]);
    }
  }

  // Rows of this warpgroup's keys of [batch, kv_heads, kv_len, columns], times `factor`.
  DYNATTN_DEVICE void write(void* base, const long long (&strides)[3], const float (&sum)[UNITS][FRAGMENTS][4], int key0,
                            int columns, float factor) const {
    unsigned short* rows = rows_of(static_cast<unsigned short*>(base), strides, block.batch, block.kv_head);
    const int lane = lane_now(), g = lane >> 2;
#pragma unroll
    for (int i = 0; i < 2 * UNITS; ++i) {
      const int unit = i / 2, half = i % 2;
      const int key = key0 + unit * UNIT_KEYS + key_at<STRIDE>(16 * warp + 4 * (g >> 1) + 2 * half + (g & 1));
      if (key >= p.forward.kv_len) continue;
#pragma unroll
      for (int n = 0; n < FRAGMENTS; ++n) {
        const int column = 8 * n + 2 * (lane & 3);
        const float(&pair)[4] = sum[unit][n];
        if (column >= columns) continue;
        *reinterpret_cast<u32*>(rows + key * strides[2] + column) =
            Element::pack(pair[2 * half] * factor, pair[2 * half + 1] * factor);
      }
    }
  }

  DYNATTN_DEVICE void run(const BackwardWork<HEAD_DIM>& work) {
    const ForwardParams& f = p.forward;
    Ring<Shared::STAGES> ring;
    u32 parity = 0;
#pragma unroll 1
    for (int block_key = work.first_key; block_key < f.kv_len; block_key += work.key_step, parity ^= 1) {
      const int key0 = block_key + group * work.WARPGROUP_KEYS;
      clear();
      barrier_wait(shared.keys_filled(), parity);
#pragma unroll 1
      for (QueryTiles tiles(f, block.kv_head, block_key, CONSUMER_ROWS); tiles.more(); tiles.advance(), ring.advance()) {
        const Place place = tiles.place(f, block, CONSUMER_ROWS);
        barrier_wait(shared.filled(ring.stage), ring.parity);
        if (key0 < keys_needed(f, place.first_query, CONSUMER_ROWS)) add_tile(place, key0, ring.stage);
        release(shared.free(ring.stage));
      }
      release(shared.keys_free());
      write(p.d_key, p.d_key_strides, d_key, key0, f.head_dim, f.scale);
      write(p.d_value, p.d_value_strides, d_value, key0, f.value_dim, 1.0f);
    }
  }
};

template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, int STRIDE>
__global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    nm_backward_wgmma(const BackwardParams p, const DYNATTN_GRID_CONSTANT TensorMap key_low,
                      const DYNATTN_GRID_CONSTANT TensorMap key_high, const DYNATTN_GRID_CONSTANT TensorMap key,
                      const DYNATTN_GRID_CONSTANT TensorMap value_low, const DYNATTN_GRID_CONSTANT TensorMap value_high,
                      const DYNATTN_GRID_CONSTANT TensorMap query, const DYNATTN_GRID_CONSTANT TensorMap grad_out) {
  DYNATTN_SHARED_MEMORY(shared_pointer, 1024);
  const BackwardShared<HEAD_DIM> shared = {(shared_address(shared_pointer) + 1023) / 1024 * 1024};
  const BackwardWork<HEAD_DIM> work(p, blockIdx.x);
  const int thread = threadIdx.x, group = same_in_warp(thread / WARPGROUP);
  if (thread == 0) shared.init_barriers();
  block_barrier();

  if (group == CONSUMERS) {
    shrink_registers<PRODUCER_REGISTERS>();
    if (thread % WARPGROUP == 0) {
      produce<HEAD_DIM, STRIDE>(p, work, shared, {key_low, key_high, key, value_low, value_high, query, grad_out});
    }
  } else {
    grow_registers<CONSUMER_REGISTERS>();
    BackwardConsumer<Element, HEAD_DIM, PATTERN, MASK, STRIDE> consumer = {
        p, work.block, shared, group, same_in_warp(thread / 32 % 4)};
    consumer.run(work);
  }
}

}  // namespace dynattn
