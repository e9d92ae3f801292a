// Adds values that are read in place to the outputs of a few rows. Values that are no floats are converted first.
//
// Where the rows keep nearly all keys of a tile between them, they take all of its keys, in the order of positions,
// several rows at once: a value is loaded once for all of them, and the rows of the next tile are asked for with those
// that are read, so that memory is as busy here as while keys are scored. A row's weight is 0 where it does not keep the
// key. Of an infinite value it would then see NaN: rows whose sums are not finite take their own keys alone. So does
// every row where less is kept: what each loads for itself is then less than what any of them keeps.
#pragma once

#include "common/arena.h"
#include "nm/unpacked.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Vectors of a value row whose sums stay in registers for kR rows, beside a vector of values and a weight.
template <int kR>
constexpr int value_columns() {
  constexpr int kColumns = (kRegisters == 32 ? 16 : 12) / kR;
  return kColumns < kMaxChunk ? kColumns : kMaxChunk;
}

// A thread's memory for some rows and a tile.
struct ValueScratch {
  float* weights;       // [row][tile]: of the keys taken
  const char** values;  // [tile]: where their values lie
  float* floats;        // [tile][value width]: those that had to be converted
};

static ValueScratch lay_value_scratch(const Plan& plan, bool in_place, Arena& arena) {
  ValueScratch s;
  s.weights = arena.take<float>(kRowsAtOnce * plan.tile);
  s.values = arena.take<const char*>(plan.tile);
  s.floats = arena.take<float>(in_place ? 0 : plan.tile * value_width(plan));
  return s;
}

// Keys that some rows take, with their weights and values in the thread's memory.
struct TakenKeys {
  int count;
  bool own;              // every row keeps all of them
  const TileRows* next;  // rows to ask for while these are read; NULL for those of the keys that follow
};

// Asks for what is read after key `i`: `bytes` of a row, from `at` on.
DYNATTN_INLINE void ask_ahead(const TakenKeys& keys, int i, const ValueScratch& scratch, int64_t at, int64_t bytes) {
  if (keys.next != nullptr) return prefetch_far(TileRows::soon(*keys.next, i) + at, bytes);
  prefetch_row(scratch.values[smaller(i + kValuesAhead, keys.count - 1)] + at, bytes);
}

// The keys that a row keeps. `weights`: negative where it does not.
static TakenKeys take_kept(const Plan& plan, const float* weights, const TileRows& rows, const ValueScratch& scratch) {
  const Vec none = broadcast(-0.5f);
  int count = 0;
  for (int position = 0; position < plan.tile; position += kWidth) {
    uint32_t left = bits(greater(load(weights + position), none));
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
static TakenKeys take_all(const Plan& plan, const float* weights, const TileRows& rows, const ValueScratch& scratch) {
  for (int i = 0; i < kR * plan.tile; i += kWidth) store(scratch.weights + i, max(load(weights + i), zero()));
  for (int i = 0; i < plan.tile; i++) scratch.values[i] = rows.row[plan.key_of[i]] + rows.shift;
  return {plan.tile, false, &rows};
}

// Converts what is taken, and asks for what follows it.
static TakenKeys converted(const Plan& plan, TakenKeys keys, const ValueScratch& scratch) {
  const NMForwardArgs& args = *plan.args;
  const int64_t width = value_width(plan);
  for (int i = 0; i < keys.count; i++) {
    ask_ahead(keys, i, scratch, 0, args.value_dim * element_size(args.dtype));
    copy_row(scratch.floats + i * width, scratch.values[i], args.dtype, args.value_dim, width);
  }
  for (int i = 0; i < keys.count; i++) scratch.values[i] = reinterpret_cast<const char*>(scratch.floats + i * width);
  return {keys.count, keys.own, nullptr};
}

// out += Σ weight · value over the keys, for kR rows and kC vectors of them, from their float `at` on. Where rows may not
// keep all of the keys and a sum is not finite, nothing is stored and the answer is false.
template <int kR, int kC>
static bool add_values(const Plan& plan, float* out, int64_t stride, int64_t at, const TakenKeys& keys,
                       const ValueScratch& scratch) {
  constexpr int64_t kFloat = sizeof(float);
  Vec acc[kR][kC];
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
    for (int c = 0; c < kC; c++) acc[r][c] = load(out + r * stride + c * kWidth);
  }
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
  if (!keys.own) {
    Vec nan = zero();
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
      for (int c = 0; c < kC; c++) nan = fmadd(acc[r][c], zero(), nan);
    }
    const float any = reduce_add(nan);
    if (any != any) return false;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kR; r++) {
#pragma GCC unroll 16
    for (int c = 0; c < kC; c++) store(out + r * stride + c * kWidth, acc[r][c]);
  }
  return true;
}

// The same over all of a row, as many vectors at once as registers hold. Returns the pieces that are not finite, a bit
// for each.
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

// Adds the values of one tile to the outputs of kR rows. `whole`: they keep nearly all keys.
template <int kR>
static void add_row_values(const Plan& plan, const float* weights, float* out, int64_t stride, const TileRows& rows,
                           bool whole, bool in_place, const ValueScratch& scratch) {
  const int pieces = static_cast<int>(ceil_div(plan.chunks * plan.chunk, value_columns<kR>()));
  uint64_t left = ~uint64_t{0} >> (64 - pieces);
  if (whole) {
    TakenKeys keys = take_all<kR>(plan, weights, rows, scratch);
    if (!in_place) keys = converted(plan, keys, scratch);
    left = add_pieces<kR>(plan, left, pieces, out, stride, keys, scratch);
  }
  for (int r = 0; left != 0 && r < kR; r++) {
    TakenKeys own = take_kept(plan, weights + r * plan.tile, rows, scratch);
    if (!in_place) own = converted(plan, own, scratch);
    add_pieces<1>(plan, left, pieces, out + r * stride, stride, own, scratch);
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
