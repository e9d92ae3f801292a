// The sm_90a backward's tiles in shared memory, and the warpgroup that copies them there.
//
// K stands there twice and V once, for as long as the block works on its keys. Queries and the gradients of their
// outputs come in stages of 64 rows; a stage is free again when both computing warpgroups have read it.
#pragma once

#include "backward_order.cuh"
#include "wgmma_tiles.cuh"

namespace dynattn {

constexpr int PANEL_BYTES = UNIT_KEYS * LINE_BYTES;  // 64 rows of 64 columns

// The layout of shared memory. Every tile has 64 rows. Each unit of a block has a tile of keys, and so one of P and of
// dS.
template <int HEAD_DIM>
struct BackwardShared {
  static constexpr int UNITS = 128 / HEAD_DIM, BLOCK_UNITS = CONSUMERS * UNITS, STAGES = HEAD_DIM == 64 ? 3 : 2;
  static constexpr int PANELS = HEAD_DIM / LINE_COLUMNS, TILE_BYTES = PANELS * PANEL_BYTES;
  u32 base;

  DYNATTN_DEVICE u32 keys(int unit) const { return base + unit * TILE_BYTES; }  // permuted
  DYNATTN_DEVICE u32 keys_in_order(int unit) const { return keys(BLOCK_UNITS + unit); }
  DYNATTN_DEVICE u32 values(int unit) const { return keys(2 * BLOCK_UNITS + unit); }  // permuted
  DYNATTN_DEVICE u32 queries(int stage) const { return keys(3 * BLOCK_UNITS + 2 * stage); }
  DYNATTN_DEVICE u32 grads(int stage) const { return keys(3 * BLOCK_UNITS + 2 * stage + 1); }
  DYNATTN_DEVICE u32 weights(int unit) const { return queries(STAGES) + 2 * unit * PANEL_BYTES; }
  DYNATTN_DEVICE u32 score_grads(int unit) const { return weights(unit) + PANEL_BYTES; }
  // A fragment of a warp's rows of dQ, on its way from one warpgroup to the other.
  DYNATTN_DEVICE u32 handed(int warp, int fragment, int lane) const {
    return weights(BLOCK_UNITS) + 16 * (32 * (HEAD_DIM / 8 * warp + fragment) + lane);
  }
  DYNATTN_DEVICE u32 keys_filled() const { return handed(WARPGROUP / 32, 0, 0); }
  DYNATTN_DEVICE u32 keys_free() const { return keys_filled() + 8; }
  DYNATTN_DEVICE u32 filled(int stage) const { return keys_filled() + 16 + 8 * stage; }
  DYNATTN_DEVICE u32 free(int stage) const { return filled(STAGES + stage); }
  DYNATTN_DEVICE u32 handed_over(int warp) const { return free(STAGES + warp); }
  DYNATTN_DEVICE u32 taken(int warp) const { return handed_over(WARPGROUP / 32 + warp); }

  DYNATTN_DEVICE void init_barriers() const {
    barrier_init(keys_filled(), 1);
    barrier_init(keys_free(), CONSUMERS);
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(filled(stage), 1);
      barrier_init(free(stage), CONSUMERS);
    }
    for (int warp = 0; warp < WARPGROUP / 32; ++warp) {
      barrier_init(handed_over(warp), 1);
      barrier_init(taken(warp), 1);
    }
    barrier_init_fence();
  }
};

// Says which stage comes next, and the parity of its uses so far, by which barriers tell their phases apart.
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

// The work of a block: tiles of keys b, b + s, … of a head, where s blocks share it.
template <int HEAD_DIM>
struct BackwardWork {
  static constexpr int WARPGROUP_KEYS = BackwardShared<HEAD_DIM>::UNITS * UNIT_KEYS, KEYS = CONSUMERS * WARPGROUP_KEYS;
  BackwardPlace block;
  int first_key, key_step;

  DYNATTN_DEVICE BackwardWork(const BackwardParams& p, int index) {
    const int pair = index / p.splits, split = index % p.splits;
    block = {0, split, pair / p.forward.kv_heads, pair % p.forward.kv_heads};
    first_key = split * KEYS;
    key_step = p.splits * KEYS;
  }
};

struct BackwardMaps {  // keys and values have a map for each half of a chunk
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
  // Copies two of every four rows (positions) of a unit, from `member` on.
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

}  // namespace dynattn
