// Adds values that are read in place to the outputs of a few rows. Values that are no floats are converted first, once
// for all rows.
//
// Where the rows keep nearly all keys of a tile between them, they take all of its keys, in the order of positions,
// several rows at once: a value is loaded once for all of them, and the rows of the next tile are asked for with those
// that are read, so that memory is as busy here as while keys are scored. A row's weight is 0 where it does not keep
// the key. Of an infinite value it would then see NaN: rows whose sums are not finite take their own keys alone. So
// does every row where less is kept: products with all that any of them keeps would be more than each has with its own.
#pragma once

#include "common/arena.h"
#include "common/chunks.h"
#include "nm/unpacked.h"
#include "nm/values.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Vectors of a value row whose sums stay in registers for kR rows, beside values and weights.
template <int kR>
constexpr int value_columns() {
  constexpr int kColumns = (kRegisters == 32 ? 16 : 12) / kR;
  return kColumns < kMaxChunk ? kColumns : kMaxChunk;
}

// A thread's memory for some rows and a tile.
struct ValueScratch {
  float* weights;       // [row][tile]: of the keys taken
  const char** values;  // [tile]: where their values lie
  // Where values cannot be read in place:
  float* floats;      // [tile][value width], by key: those that were converted
  const char** rows;  // [tile], by key: where they lie
  int32_t* keys;      // [tile]: whose they are, in the order of positions
};

static ValueScratch lay_value_scratch(const Plan& plan, bool in_place, Arena& arena) {
  ValueScratch s;
  s.weights = arena.take<float>(kRowsAtOnce * plan.tile);
  s.values = arena.take<const char*>(plan.tile);
  s.floats = arena.take<float>(in_place ? 0 : plan.tile * value_width(plan));
  s.rows = arena.take<const char*>(in_place ? 0 : plan.tile);
  s.keys = arena.take<int32_t>(in_place ? 0 : plan.tile);
  return s;
}

// The positions of a vector that `count` rows keep between them, a bit for each. `weights`: of the vector's positions,
// negative where a row does not keep the key.
DYNATTN_INLINE uint32_t kept_between(const Plan& plan, const float* weights, int64_t count) {
  uint32_t kept = 0;
  for (int64_t r = 0; r < count; r++) kept |= bits(greater(load(weights + r * plan.tile), broadcast(-0.5f)));
  return kept;
}

// The rows of a tile as floats: all of them, or those that `count` rows keep between them. Rows that follow are asked
// for.
static TileRows converted(const Plan& plan, const float* weights, int64_t count, const TileRows& rows, bool whole,
                          const ValueScratch& scratch) {
  const NMForwardArgs& args = *plan.args;
  const int64_t width = value_width(plan), bytes = args.value_dim * element_size(args.dtype);
  int taken = 0;
  for (int position = 0; position < plan.tile; position += kWidth) {
    uint32_t left = whole ? (1u << kWidth) - 1 : kept_between(plan, weights + position, count);
    for (; left != 0; left &= left - 1) scratch.keys[taken++] = plan.key_of[position + __builtin_ctz(left)];
  }
  for (int i = 0; i < taken; i++) {
    const int32_t key = scratch.keys[i];
    if (whole) {
      prefetch_far(TileRows::soon(rows, i), bytes);
    } else {
      prefetch_row(rows.row[scratch.keys[smaller(i + kValuesAhead, taken - 1)]] + rows.shift, bytes);
    }
    float* const floats = scratch.floats + key * width;
    copy_row(floats, rows.row[key] + rows.shift, args.dtype, args.value_dim, width);
    scratch.rows[key] = reinterpret_cast<const char*>(floats);
  }
  return {scratch.rows, scratch.rows, 0, 0, plan.tile, plan.tile};
}

// Keys that some rows take, with their weights and values in the thread's memory.
struct TakenKeys {
  int count;
  bool own;              // every row keeps all of them
  const TileRows* soon;  // of these the rows that follow the tile are asked for, or else of the keys a few ahead
};

// The keys that a row keeps. `weights`: negative where it does not.
static TakenKeys take_kept(const Plan& plan, const float* weights, const TileRows& rows, const ValueScratch& scratch) {
  int count = 0;
  for (int position = 0; position < plan.tile; position += kWidth) {
    uint32_t left = kept_between(plan, weights + position, 1);
    for (; left != 0; left &= left - 1) {
      const int at = position + __builtin_ctz(left);
      scratch.values[count] = rows.row[plan.key_of[at]] + rows.shift;
      scratch.weights[count++] = weights[at];
    }
  }
  return {count, true, nullptr};
}

// All keys of a tile.
template <int kR>
static TakenKeys take_all(const Plan& plan, const float* weights, const TileRows& rows, bool asks,
                          const ValueScratch& scratch) {
  for (int i = 0; i < kR * plan.tile; i += kWidth) store(scratch.weights + i, max(load(weights + i), zero()));
  for (int i = 0; i < plan.tile; i++) scratch.values[i] = rows.row[plan.key_of[i]] + rows.shift;
  return {plan.tile, false, asks ? &rows : nullptr};
}

// Asks for `bytes` of a row that is read after key `i`, from its byte `at` on.
DYNATTN_INLINE void ask_ahead(const TakenKeys& keys, int i, const ValueScratch& scratch, int64_t at, int64_t bytes) {
  if (keys.soon != nullptr) return prefetch_far(TileRows::soon(*keys.soon, i) + at, bytes);
  prefetch_row(scratch.values[smaller(i + kValuesAhead, keys.count - 1)] + at, bytes);
}

// out += Σ weight · value over the keys, for kR rows and kC vectors of them, from their float `at` on. Where rows may
// not keep all of the keys and a sum is not finite, nothing is stored and the answer is false.
template <int kR, int kC>
static bool add_values(const Plan& plan, float* out, int64_t stride, int64_t at, const TakenKeys& keys,
                       const ValueScratch& scratch) {
  constexpr int64_t kFloat = sizeof(float);
  Vec acc[kR][kC];
  load_columns<kR, kC>(out, stride, acc);
  for (int i = 0; i < keys.count; i++) {
    ask_ahead(keys, i, scratch, at * kFloat, kC * kWidth * kFloat);
    const float* row = reinterpret_cast<const float*>(scratch.values[i]) + at;
    Vec value[kC];
#pragma GCC unroll 16
    for (int c = 0; c < kC; c++) value[c] = load_any(row + c * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
      const Vec weight = broadcast(scratch.weights[r * plan.tile + i]);
#pragma GCC unroll 16
      for (int c = 0; c < kC; c++) acc[r][c] = fmadd(weight, value[c], acc[r][c]);
    }
  }
  if (!keys.own && !are_finite<kR, kC>(acc)) return false;
  store_columns<kR, kC>(out, stride, acc);
  return true;
}

// A row is cut into pieces, each of as many vectors as registers hold for kR rows at once.
template <int kR>
static int count_pieces(const Plan& plan) {
  static_assert(kMaxHeadDim / kWidth <= 64 * value_columns<kR>(), "each piece has a bit of a word");
  return static_cast<int>(ceil_div(plan.chunks * plan.chunk, value_columns<kR>()));
}

// add_values() over those of `pieces` pieces that are in `wanted`, a bit for each. Returns those that are not finite.
template <int kR>
static uint64_t add_pieces(const Plan& plan, uint64_t wanted, int pieces, float* out, int64_t stride,
                           const TakenKeys& keys, const ValueScratch& scratch) {
  const int vectors = plan.chunks * plan.chunk;
  uint64_t left = 0;
  for (; wanted != 0; wanted &= wanted - 1) {
    const int piece = __builtin_ctzll(wanted), first = vectors * piece / pieces;
    const int64_t at = int64_t{first} * kWidth;
    with_chunk(vectors * (piece + 1) / pieces - first, [&](auto some) {
      constexpr int kC = decltype(some)::value;
      if constexpr (kC <= value_columns<kR>()) {
        if (!add_values<kR, kC>(plan, out + at, stride, at, keys, scratch)) left |= uint64_t{1} << piece;
      }
    });
  }
  return left;
}

// Adds the values of one tile to the outputs of kR rows. `whole`: they take all keys. `asks`: rows that follow the tile
// are then asked for.
template <int kR>
static void add_row_values(const Plan& plan, const float* weights, float* out, int64_t stride, const TileRows& rows,
                           bool whole, bool asks, const ValueScratch& scratch) {
  const int pieces = count_pieces<kR>(plan);
  uint64_t left = ~uint64_t{0} >> (64 - pieces);
  if (whole) {
    const TakenKeys all = take_all<kR>(plan, weights, rows, asks, scratch);
    left = add_pieces<kR>(plan, left, pieces, out, stride, all, scratch);
  }
  for (int r = 0; left != 0 && r < kR; r++) {
    const TakenKeys own = take_kept(plan, weights + r * plan.tile, rows, scratch);
    add_pieces<1>(plan, left, pieces, out + r * stride, stride, own, scratch);
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
