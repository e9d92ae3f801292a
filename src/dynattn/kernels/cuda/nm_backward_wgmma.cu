// N:M attention, backward, for sm_90a: what nm_backward.cu computes, with TMA copies and products of a warpgroup.
//
//     S = QKᵀ,  dP = dO Vᵀ  (64 queries by 64 keys)  ->  choice, P, dS  ->  dQ += dS K (sparse),  dV += Pᵀ dO,  dK += dSᵀ Q
//
// A block is two computing warpgroups and one that only starts copies. A computing warpgroup owns UNITS times 64 keys, as
// many as fit: dV and dK fill 128 of its 240 registers, whatever the head_dim. It walks over the queries of all heads that
// share the keys, 64 at a time. Both warpgroups read the same queries, and have little else to do with each other: while
// one chooses and exponentiates, the other one's products run.
//
// K and V stand in shared memory with their rows permuted, as the forward has K: then the choice is made in registers,
// and the gradients of the products (dP) stand in the same lanes as the scores. dS in registers is the sparse operand of
// dQ. The other operand of that product is K by rows, which stands in shared memory a second time, in natural order. P and
// dS are also written to shared memory, spread out with zeros. Their columns remain in the permuted order, in which
// stmatrix meets no bank twice. These columns become the rows of dV and dK: row 8 (2 c + h) + 2 t + i is key
// 16 c + 4 t + 2 h + i.
//
// The second warpgroup hands its part of dQ to the first, warp by warp, which adds both to sums in device memory that
// belong to this block alone, every element by the same thread each time. Its additions to one address happen in order, so
// the same bits come out of every run.
//
// Source: arXiv:2203.00091 (the method), arXiv:2407.08608 (warpgroups that copy and that compute).
#include "backward_copies.cuh"
#include "backward_weights.cuh"

namespace dynattn {

// What one computing warpgroup does.
template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool BAND, int STRIDE>
struct BackwardConsumer {
  using Shared = BackwardShared<HEAD_DIM>;
  // Where window or sinks widen the choice, dS and P are two sets: all lower and all upper pairs of the groups.
  static constexpr int UNITS = Shared::UNITS, FRAGMENTS = HEAD_DIM / 8, SETS = BAND ? 2 : 1;
  const BackwardParams& p;
  const BackwardPlace& block;
  const Shared& shared;
  const int group, warp;  // the warpgroup's number in the block, and the warp's in the warpgroup

  float d_key[UNITS][FRAGMENTS][4], d_value[UNITS][FRAGMENTS][4];
  PackedSurvivors gradients[UNITS][SETS];  // dS of the tile at hand; the second set is 0 where a unit is not dense
  u32 metadata[UNITS];
  u32 handed_parity = 0;

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
  DYNATTN_DEVICE void store_spread(u32 panel, const PackedSurvivors (&sets)[SETS], u32 nibbles, bool dense) const {
    const int lane = lane_now(), row = 16 * warp + (lane & 15);
    const u32 address = panel + row * LINE_BYTES, swizzle = static_cast<u32>((lane >> 4) ^ (lane & 7)) << 4;
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
      FourKeys keys[2];
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        keys[row] = dense ? FourKeys{sets[0][chunk][row], sets[SETS - 1][chunk][row]}
                          : spread<PATTERN>(sets[0][chunk][row], nibble_of(nibbles, chunk, row));
      }
      store_matrices(address + (swizzle ^ (chunk << 5)), keys[0].low, keys[1].low, keys[0].high, keys[1].high);
    }
  }

  // The choice, P and dS of 64 queries and unit `unit` of this warpgroup's keys.
  DYNATTN_DEVICE void weigh_unit(const Place& place, const TwoRows& terms, int query, int key0, int stage, int unit) {
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
    const bool dense = BAND && band_touches(f, place.first_query, CONSUMER_ROWS, key0, UNIT_KEYS);
    Kept kept[SETS];
    PackedSurvivors weights[SETS];
    choose_unit(s, query, key0, lane, dense, kept);
    const QuadLane quad = quad_lane(lane);
    metadata[unit] = finish(exchange(kept[0].nibbles, quad), quad);
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      if (set == 0 || dense) weigh(kept[set].s, terms, (IS_BIAS<MASK> ? 1.0f : f.scale) * LOG2_E);
      pack_survivors<Element>(kept[set].s, weights[set]);
    }
    store_spread(shared.weights(tile), weights, kept[0].nibbles, dense);
    products_wait<0>();
    pin(value_products);
    get_scores(value_products, s);
    const Dropout<false, STRIDE> dropout(f, 0, 0);
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      Survivors ds = {};
      if (dense) {
        differentiate<Pattern::two_of_four>(kept[set], s, terms, dropout, query, key0, lane, ds);
      } else if (set == 0) {
        differentiate<PATTERN>(kept[set], s, terms, dropout, query, key0, lane, ds);
      }
      if (IS_BIAS<MASK> && p.d_mask != nullptr && (set == 0 || dense)) {
        write_mask_gradients<STRIDE>(p, kept[set], ds, place.row0, place.first_query, query, key0, lane);
      }
      pack_survivors<Element>(ds, gradients[unit][set]);
    }
    store_spread(shared.score_grads(tile), gradients[unit], kept[0].nibbles, dense);
  }

  // The survivors' scores; in a dense tile, all that the choice, the window or the sinks keep.
  DYNATTN_DEVICE void choose_unit(const Scores& s, int query, int key0, int lane, bool dense, Kept (&kept)[SETS]) const {
    if (dense) {
      Survivors dropped[2];
      split_by_choice_and_band<PATTERN, STRIDE>(s, p.forward, query, key0, lane, kept[0].s, kept[SETS - 1].s, dropped[0],
                                                dropped[1]);
      kept[0].nibbles = LOWER_PAIRS;
      kept[SETS - 1].nibbles = UPPER_PAIRS;
    } else {
      if (BAND) kept[SETS - 1] = {};
      kept[0].nibbles = choose<PATTERN>(s, kept[0].s);
    }
  }

  // dQ = dS K of the tile, over all of this warpgroup's keys.
  DYNATTN_DEVICE void start_query_gradients(float (&d_query)[FRAGMENTS][4]) const {
#pragma unroll
    for (int i = 0; i < UNITS * SETS; ++i) {
      const int unit = i / SETS;
      const u32 word = i % SETS == 0 ? metadata[unit] : UPPER_PAIRS;
      const u32(&pairs)[4][2] = gradients[unit][i % SETS];
      const u64 keys = rows_of_tile(shared.keys_in_order(group * UNITS + unit));
      const u32 a[2][4] = {{pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]},
                           {pairs[2][0], pairs[2][1], pairs[3][0], pairs[3][1]}};
      multiply_values<Element, 0>(d_query, a[0], keys, word, i > 0);
      multiply_values<Element, 1>(d_query, a[1], advanced(keys, 32 * LINE_BYTES), word);
    }
    products_commit();
  }

  // The second warpgroup's part of a warp's 16 rows, to the same warp of the first.
  DYNATTN_DEVICE void hand_over(const float (&d_query)[FRAGMENTS][4]) {
    const int lane = lane_now();
    barrier_wait(shared.taken(warp), handed_parity ^ 1);
#pragma unroll
    for (int n = 0; n < FRAGMENTS; ++n) store_floats(shared.handed(warp, n, lane), d_query[n]);
    warp_barrier();
    if (lane == 0) barrier_arrive(shared.handed_over(warp));
    handed_parity ^= 1;
  }
  DYNATTN_DEVICE void take(float (&d_query)[FRAGMENTS][4]) {
    const int lane = lane_now();
    barrier_wait(shared.handed_over(warp), handed_parity);
#pragma unroll
    for (int n = 0; n < FRAGMENTS; ++n) {
      float other[4];
      load_floats(shared.handed(warp, n, lane), other);
#pragma unroll
      for (int i = 0; i < 4; ++i) d_query[n][i] += other[i];
    }
    warp_barrier();
    if (lane == 0) barrier_arrive(shared.taken(warp));
    handed_parity ^= 1;
  }

  // Adds a warp's 16 rows to this block's sums, laid out as accumulators are.
  DYNATTN_DEVICE void add_query_gradients(const float (&d_query)[FRAGMENTS][4], const Place& place) const {
    const ForwardParams& f = p.forward;
    const int row_blocks = (f.q_len + 15) / 16, row_block = place.first_query / 16 + warp;
    if (row_block >= row_blocks) return;
    const long long pair = (static_cast<long long>(block.split) * f.batch + place.batch) * f.heads + place.head;
    float* sums = p.query_sums + ((pair * row_blocks + row_block) * FRAGMENTS * 32 + lane_now()) * 4;
#pragma unroll
    for (int n = 0; n < FRAGMENTS; ++n) add_to_memory(sums + n * 128, d_query[n]);
  }

  DYNATTN_DEVICE void add_tile(const Place& place, int key0, int stage) {
    const ForwardParams& f = p.forward;
    const int query = place.first_query + 16 * warp + lane_now() / 4;
    const TwoRows terms = load_row_terms(p, place.row0, place.first_query, query);
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
    if (group > 0) {
      hand_over(d_query);
    } else {
      if (key0 + BackwardWork<HEAD_DIM>::WARPGROUP_KEYS < keys_needed(f, place.first_query, CONSUMER_ROWS)) take(d_query);
      add_query_gradients(d_query, place);
    }
    products_wait<0>();
#pragma unroll
    for (int unit = 0; unit < UNITS; ++unit) {
      pin(d_value[unit]);
      pin(d_key[unit]);
    }
  }

  // Writes the rows of this warpgroup's keys of [batch, kv_heads, kv_len, columns], multiplied by `factor`.
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

template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool BAND, int STRIDE>
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
    BackwardConsumer<Element, HEAD_DIM, PATTERN, MASK, BAND, STRIDE> consumer = {
        p, work.block, shared, group, same_in_warp(thread / 32 % 4)};
    consumer.run(work);
  }
}

}  // namespace dynattn
