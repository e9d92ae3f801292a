// Products with bfloat16 rows that are read in place, by pairs of numbers: two neighbours of a key, or the values of two
// keys.
//
// A product of two bfloat16 numbers is exact in float32, so that scores differ from those of unpacked.h by the order of
// their sums alone. Weights are rounded to bfloat16, and a row's output is divided by the sum of its weights as rounded,
// which stands behind its output (RowStates). Logsumexp and kept mass are of weights as they were.
#pragma once

#include "common/arena.h"
#include "common/chunks.h"
#include "common/pairs.h"
#include "nm/unpacked.h"
#include "nm/values.h"

#ifdef DYNATTN_PAIRS

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kPairWidth = 2 * kWidth;  // numbers of a vector of pairs

// scores[r][lane] = Σ_k queries[r][k] · keys[lane][k], as dot_rows() has it; `width` is a multiple of kPairWidth.
template <int kR>
static void dot_pairs(const uint16_t* queries, int64_t width, const uint16_t* const keys[kWidth], float* scores,
                      int64_t stride) {
  Vec quarters[kR][kWidth / 4];
#pragma GCC unroll 4
  for (int j = 0; j < kWidth / 4; j++) {
    Vec acc[kR][4];
#pragma GCC unroll 4
    for (int r = 0; r < kR; r++) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) acc[r][i] = zero();
    }
    for (int64_t k = 0; k < width; k += kPairWidth) {
      Pairs key[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) key[i] = load_pairs(keys[j * 4 + i] + k);
#pragma GCC unroll 4
      for (int r = 0; r < kR; r++) {
        const Pairs query = load_pairs(queries + r * width + k);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) acc[r][i] = add_products(acc[r][i], query, key[i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kR; r++) quarters[r][j] = sum_four(acc[r]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kR; r++) store(scores + r * stride, sum_quarters(quarters[r]));
}

static void dot_pairs(const uint16_t* queries, int64_t rows, int64_t width, const uint16_t* const keys[kWidth],
                      float* scores, int64_t stride) {
  for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
    with_rows(smaller(kRowsAtOnce, rows - r), [&](auto some) {
      dot_pairs<decltype(some)::value>(queries + r * width, width, keys, scores + r * stride, stride);
    });
  }
}

// A thread's memory for some rows and a tile.
struct PairScratch {
  uint16_t* rounded;    // [row][tile]: weights by position
  uint16_t* listed;     // [row][tile]: those of listed keys
  const char** places;  // [tile]: where values lie, by position
  const char** values;  // [tile]: where those of listed keys lie
};

static PairScratch lay_pair_scratch(const Plan& plan, Arena& arena) {
  PairScratch s;
  s.rounded = arena.take<uint16_t>(kRowsAtOnce * plan.tile);
  s.listed = arena.take<uint16_t>(kRowsAtOnce * plan.tile);
  s.places = arena.take<const char*>(plan.tile);
  s.values = arena.take<const char*>(plan.tile);
  return s;
}

// Keys, an even number of them, with the weights that some rows give them.
struct PairKeys {
  int count;
  bool own;                  // every row keeps all of them
  const char* const* value;  // where their values lie
  const uint16_t* weight;    // [row][tile]; 0 where a row does not keep the key
};

// Weights of a row as rounded, 0 for keys that it does not keep. Their sums by lane are added to `sums`.
static void round_weights(const float* weights, int count, uint16_t* to, float* sums) {
  constexpr uint16_t kOnes[2] = {0x3f80, 0x3f80};
  const Pairs ones = broadcast_pair(kOnes);
  Vec sum = load(sums);
  for (int i = 0; i < count; i += kPairWidth) {
    store_rounded(to + i, max(load(weights + i), zero()), max(load(weights + i + kWidth), zero()));
    sum = add_products(sum, load_pairs(to + i), ones);
  }
  store(sums, sum);
}

// The keys that any of kR rows keeps. A row of zeros makes their number even. `place`: where the values of a key lie.
template <int kR, class Place>
static PairKeys list_pairs(const Plan& plan, const float* weights, const uint16_t* rounded, const Place& place,
                           const PairScratch& scratch) {
  const Vec none = broadcast(-0.5f);
  int count = 0;
  for (int position = 0; position < plan.tile; position += kWidth) {
    uint32_t left = 0;
    for (int r = 0; r < kR; r++) left |= bits(greater(load(weights + r * plan.tile + position), none));
    for (; left != 0; left &= left - 1) {
      const int at = position + __builtin_ctz(left);
      scratch.values[count] = place(plan.key_of[at]);
      for (int r = 0; r < kR; r++) scratch.listed[r * plan.tile + count] = rounded[r * plan.tile + at];
      count++;
    }
  }
  if (count % 2 != 0) {
    scratch.values[count] = reinterpret_cast<const char*>(kZeros);
    for (int r = 0; r < kR; r++) scratch.listed[r * plan.tile + count] = 0;
    count++;
  }
  return {count, kR == 1, scratch.values, scratch.listed};
}

constexpr int kWholeRow = 1 << 16;

// out += Σ weight · value over the keys, for kR rows and kChunk vectors of them, from their number `at` on. With each
// two keys `step` rows of those that follow are asked for, in parts of kWholeRow. Where rows may not keep all of the keys
// and a sum is not finite, nothing is stored and the answer is false: of an infinite value that a row does not keep it
// would see NaN.
template <int kR, int kChunk>
static bool add_pairs(const Plan& plan, float* out, int64_t stride, int64_t at, const PairKeys& keys,
                      const TileRows& rows, int step) {
  Vec acc[kR][kChunk];
  load_columns<kR, kChunk>(out, stride, acc);
  int asked = 0, due = 0;
  for (int i = 0; i < keys.count; i += 2) {
    for (due += step; asked < due / kWholeRow; asked++) {
      prefetch_far(TileRows::soon(rows, asked) + at * 2, kChunk * kWidth * 2);
    }
    const uint16_t* even = reinterpret_cast<const uint16_t*>(keys.value[i]) + at;
    const uint16_t* odd = reinterpret_cast<const uint16_t*>(keys.value[i + 1]) + at;
    Pairs value[kChunk];
#pragma GCC unroll 16
    for (int c = 0; c < kChunk; c += 2) {
      interleave_rows(load_pairs(even + c * kWidth), load_pairs(odd + c * kWidth), value[c], value[c + 1]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
      const Pairs weight = broadcast_pair(keys.weight + r * plan.tile + i);
#pragma GCC unroll 16
      for (int c = 0; c < kChunk; c++) acc[r][c] = add_products(acc[r][c], weight, value[c]);
    }
  }
  if (!keys.own && !are_finite<kR, kChunk>(acc)) return false;
  store_columns<kR, kChunk>(out, stride, acc);
  return true;
}

// The same for the chunks of `chunks`, a bit for each. Returns those that are not finite.
template <int kR>
static uint64_t add_chunks(const Plan& plan, uint64_t chunks, float* out, int64_t stride, const PairKeys& keys,
                           const TileRows& rows, int step) {
  uint64_t left = 0;
  for (; chunks != 0; chunks &= chunks - 1) {
    const int chunk = __builtin_ctzll(chunks);
    const int64_t at = int64_t{chunk} * plan.chunk * kWidth;
    with_chunk(plan.chunk, [&](auto vectors) {
      constexpr int kChunk = decltype(vectors)::value;
      if constexpr (kChunk % 2 == 0) {
        if (!add_pairs<kR, kChunk>(plan, out + at, stride, at, keys, rows, step)) left |= uint64_t{1} << chunk;
      }
    });
  }
  return left;
}

// Adds the values of one tile to the outputs of kR rows. `whole`: all keys are taken, in the order of positions, since
// these rows keep nearly all of them. `asks`: rows that follow are asked for.
template <int kR>
static void add_pair_rows(const Plan& plan, const float* weights, float* out, int64_t stride, const TileRows& rows,
                          bool whole, bool asks, const PairScratch& scratch) {
  for (int r = 0; r < kR; r++) {
    round_weights(weights + r * plan.tile, plan.tile, scratch.rounded + r * plan.tile,
                  out + r * stride + value_width(plan));
  }
  const auto place = [&](int key) { return rows.row[key] + rows.shift; };
  const PairKeys keys = whole ? PairKeys{plan.tile, false, scratch.places, scratch.rounded}
                              : list_pairs<kR>(plan, weights, scratch.rounded, place, scratch);
  const int step = asks && keys.count > 0 ? 2 * plan.tile * kWholeRow / keys.count : 0;
  const uint64_t left = add_chunks<kR>(plan, (uint64_t{1} << plan.chunks) - 1, out, stride, keys, rows, step);
  for (int r = 0; left != 0 && r < kR; r++) {
    const PairKeys own =
        list_pairs<1>(plan, weights + r * plan.tile, scratch.rounded + r * plan.tile, place, scratch);
    add_chunks<1>(plan, left, out + r * stride, stride, own, rows, 0);
  }
}

// The same for any number of rows.
static void add_pair_values(const Plan& plan, const float* weights, int64_t count, float* out, int64_t stride,
                            const TileRows& rows, bool whole, const PairScratch& scratch) {
  for (int i = 0; whole && i < plan.tile; i++) scratch.places[i] = rows.row[plan.key_of[i]] + rows.shift;
  for (int64_t r = 0; r < count; r += kRowsAtOnce) {
    with_rows(smaller(kRowsAtOnce, count - r), [&](auto some) {
      constexpr int kR = decltype(some)::value;
      add_pair_rows<kR>(plan, weights + r * plan.tile, out + r * stride, stride, rows, whole, r == 0, scratch);
    });
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE

#endif
