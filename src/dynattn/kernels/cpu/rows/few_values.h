// Values of what few queries keep, read in place.
#pragma once

#include "common/chunks.h"
#include "rows/few_call.h"

namespace dynattn::DYNATTN_NAMESPACE {

// What a row keeps of a tile.
struct TileList {
  const float* weights;
  const int32_t* keys;  // from the tile's first
  int count;
};

static TileList tile_list(const RowPlan& plan, const HeadRows& head, int64_t row, int64_t tile) {
  const int64_t* const starts = head.starts + row * (plan.spans + 1) + tile;
  const int64_t at = row * plan.row_floats + starts[0];
  return {head.scores + at, head.numbers + at, static_cast<int>(starts[1] - starts[0])};
}

// The value rows of a tile.
struct ValueRows {
  const char* first;
  int64_t stride;  // bytes

  const char* row(int64_t key) const { return first + key * stride; }
};

// The kept keys of a row and tile, and where their values lie.
struct KeptKeys {
  int count;
  const float* value[kMaxTile];
  float weight[kMaxTile];
};

// out += Σ weight · value over the kept keys, for kChunk vectors of the row, from its float `at` on.
template <int kChunk>
static void add_kept(float* out, int64_t at, const KeptKeys& kept) {
  constexpr int kLineFloats = 64 / sizeof(float);
  Vec acc[kChunk];
#pragma GCC unroll 16
  for (int c = 0; c < kChunk; c++) acc[c] = load(out + c * kWidth);
  for (int i = 0; i < kept.count; i++) {
    const float* next = kept.value[smaller(i + kValuesAhead, kept.count - 1)] + at;
    const float* row = kept.value[i] + at;
    const Vec weight = broadcast(kept.weight[i]);
#pragma GCC unroll 16
    for (int c = 0; c < kChunk; c++) {
      if (c * kWidth % kLineFloats == 0) __builtin_prefetch(next + c * kWidth);
      acc[c] = fmadd(weight, load_any(row + c * kWidth), acc[c]);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kChunk; c++) store(out + c * kWidth, acc[c]);
}

static void add_kept(const Plan& plan, float* out, const KeptKeys& kept) {
  const int64_t width = int64_t{plan.chunk} * kWidth;
  for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
    with_chunk(plan.chunk, [&](auto vectors) {
      add_kept<decltype(vectors)::value>(out + chunk * width, chunk * width, kept);
    });
  }
}

// The floats of what a row keeps of a tile: those that lie there, or converted, once for all rows.
static void take_kept(const FewRows& call, const FewScratch& scratch, const TileList& list, const ValueRows& values,
                      bool* converted, KeptKeys& kept) {
  const NMForwardArgs& args = *call.plan->args;
  const int64_t bytes = args.value_dim * element_size(args.dtype), width = value_width(*call.plan);
  for (int i = 0; i < smaller(kValuesAhead, list.count); i++) prefetch_row(values.row(list.keys[i]), bytes);
  kept.count = list.count;
  for (int i = 0; i < list.count; i++) {
    const int key = list.keys[i];
    kept.weight[i] = list.weights[i];
    if (call.values_in_place) {
      kept.value[i] = reinterpret_cast<const float*>(values.row(key));
      continue;
    }
    float* const floats = scratch.values.floats + key * width;
    kept.value[i] = floats;
    if (converted[key]) continue;
    converted[key] = true;
    prefetch_row(values.row(list.keys[smaller(i + kValuesAhead, list.count - 1)]), bytes);
    copy_row(floats, values.row(key), args.dtype, args.value_dim, width);
  }
}

// Adds the values of a tile that each row of a head keeps.
static void add_tile_lists(const FewRows& call, const FewScratch& scratch, const HeadRows& head, int64_t tile,
                           const ValueRows& values, float* out) {
  const RowPlan& plan = *call.row_plan;
  bool converted[kMaxTile];
  if (!call.values_in_place) memset(converted, 0, static_cast<size_t>(plan.tile));
  KeptKeys kept;
  for (int64_t r = 0; r < call.rows; r++) {
    take_kept(call, scratch, tile_list(plan, head, r, tile), values, converted, kept);
    add_kept(plan, out + r * head.states.out_stride, kept);
  }
}

#ifdef DYNATTN_PAIRS
// Keys of a list from the asking for their values to their reading.
constexpr int kPairsAhead = 24;

// The same by products of pairs, for kR rows at once whose weights lie by position, negative where they do not keep the
// key.
template <int kR>
static void add_listed_pairs(const Plan& plan, const float* weights, float* out, int64_t stride,
                             const ValueRows& values, const PairScratch& scratch) {
  for (int r = 0; r < kR; r++) {
    round_weights(weights + r * plan.tile, plan.tile, scratch.rounded + r * plan.tile,
                  out + r * stride + value_width(plan));
  }
  const auto place = [&](int key) { return values.row(key); };
  const PairKeys keys = list_pairs<kR>(plan, weights, scratch.rounded, place, scratch);
  const int ahead = smaller(kPairsAhead, keys.count);
  for (int i = 0; i < ahead; i++) prefetch_far(keys.value[i], value_width(plan) * 2);
  const TileRows listed = {keys.value, keys.value, 0, 0, keys.count, ahead};
  const uint64_t all = (uint64_t{1} << plan.chunks) - 1;
  const uint64_t left = add_chunks<kR>(plan, all, out, stride, keys, listed, 2 * kWholeRow);
  for (int r = 0; left != 0 && r < kR; r++) {
    const int64_t at = r * plan.tile;
    const PairKeys own = list_pairs<1>(plan, weights + at, scratch.rounded + at, place, scratch);
    add_chunks<1>(plan, left, out + r * stride, stride, own, listed, 0);
  }
}

static void add_tile_pairs(const FewRows& call, const FewScratch& scratch, const HeadRows& head, int64_t tile,
                           const ValueRows& values, float* out) {
  const RowPlan& plan = *call.row_plan;
  const int64_t stride = head.states.out_stride;
  for (int64_t first = 0; first < call.rows; first += kRowsAtOnce, out += kRowsAtOnce * stride) {
    const int64_t count = smaller(kRowsAtOnce, call.rows - first);
    for (int64_t r = 0; r < count; r++) {
      float* const weights = scratch.scores + r * plan.tile;
      const TileList list = tile_list(plan, head, first + r, tile);
      for (int i = 0; i < plan.tile; i += kWidth) store(weights + i, broadcast(-1.0f));
      for (int i = 0; i < list.count; i++) weights[list.keys[i]] = list.weights[i];
    }
    with_rows(count, [&](auto rows) {
      add_listed_pairs<decltype(rows)::value>(plan, scratch.scores, out, stride, values, scratch.pairs);
    });
  }
}
#endif

// Adds up the values of a range of keys, of what each row of head `number` keeps.
static void add_range(const FewRows& call, const FewScratch& scratch, const HeadRows& head, int64_t number,
                      int64_t range) {
  const RowPlan& plan = *call.row_plan;
  const NMForwardArgs& args = *plan.args;
  float* const out = range_outputs(call, head, range);
  memset(out, 0, static_cast<size_t>(call.rows * head.states.out_stride) * sizeof(float));
  const int64_t stride = args.value_strides[2] * element_size(args.dtype);
  const char* const first = kv_head(args, args.value, args.value_strides, number);
  const int64_t last = smaller((range + 1) * call.range_tiles, plan.tiles);
  for (int64_t tile = range * call.range_tiles; tile < last; tile++) {
    const ValueRows values = {first + tile * plan.tile * stride, stride};
#ifdef DYNATTN_PAIRS
    if (call.pairs) {
      add_tile_pairs(call, scratch, head, tile, values, out);
      continue;
    }
#endif
    add_tile_lists(call, scratch, head, tile, values, out);
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
