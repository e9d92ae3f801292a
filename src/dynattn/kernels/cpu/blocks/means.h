// Mean scores of blocks of queries and keys over their allowed pairs, and which blocks' vectors are alike.
//
//     Σ_{i ∈ I, j ∈ J} q_i · k_j = (Σ_i q_i) · (Σ_j k_j),                        where all pairs are allowed
//     Σ_{i ∈ I} q_i · (Σ_{j ∈ J, allowed(i, j)} k_j),                            elsewhere
//
// Where a mask has a row for each query, a sum over the allowed keys of a row is made from the fewer of the allowed and the
// forbidden ones. Where a number is not finite, which a sum would give to pairs that it is not of, pairs are scored one by
// one.
#pragma once

#include <float.h>

#include "common/arena.h"
#include "common/dtypes.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kMostBlock = 1024;    // queries, and keys, of a block
constexpr float kShortest = 1e-12f;  // what a shorter vector is divided by

struct MeansPlan {
  const BlockForwardArgs* rule;
  const NMForwardArgs* args;
  int64_t size, rows, columns;  // of a block, and how many blocks of queries and of keys
  int64_t width;                // head_dim in whole vectors
  int64_t offset;
  bool by_query;   // the mask has a row for each query
  bool by_head;    // or one row for each head
  bool has_bias;   // it is added
  bool whole;      // all keys of a head are converted at once
};

static MeansPlan plan_means(const BlockForwardArgs& rule) {
  const NMForwardArgs& args = rule.call;
  MeansPlan plan = {};
  plan.rule = &rule, plan.args = &args, plan.size = args.block_size;
  plan.rows = ceil_div(args.q_len, plan.size), plan.columns = ceil_div(args.kv_len, plan.size);
  plan.width = round_up(args.head_dim, kWidth), plan.offset = args.kv_len - args.q_len;
  plan.has_bias = args.mask != nullptr && args.mask_dtype != DYNATTN_BOOL;
  plan.by_query = args.mask != nullptr && (plan.has_bias || (args.mask_strides[2] != 0 && args.q_len > 1));
  plan.by_head = args.mask != nullptr && !plan.by_query && args.mask_strides[1] != 0;
  plan.whole = args.dtype != DYNATTN_FLOAT32 || args.head_dim % kWidth != 0;
  plan.whole &= plan.by_query || (args.causal != 0 && args.q_len > 1);  // a last query sees all keys
  return plan;
}

// Rows of queries or of keys as float32, `width` apart in memory.
struct FloatRows {
  const char* base;
  int64_t stride, dim, width;
  int32_t dtype;
  float* one;    // where one row is converted to
  float* all;    // not NULL: where all of them have been converted to
  bool straight;  // the caller's rows are already so

  const float* row(int64_t i) const {
    if (all != nullptr) return all + i * width;
    const char* from = base + i * stride * element_size(dtype);
    if (straight) return reinterpret_cast<const float*>(from);
    convert(from, one);
    return one;
  }

  void convert(const char* from, float* to) const {
    int64_t at = 0;
    if (dtype == DYNATTN_BFLOAT16) {
      for (; at + kWidth <= dim; at += kWidth) store(to + at, load_bfloat16(reinterpret_cast<const uint16_t*>(from) + at));
    }
    to_floats(to + at, from + at * element_size(dtype), dtype, dim - at);
    for (at = dim; at < width; at++) to[at] = 0.0f;
  }

  void convert_some(float* to, int64_t first, int64_t count) const {
    for (int64_t i = 0; i < count; i++) convert(base + (first + i) * stride * element_size(dtype), to + i * width);
  }

  void convert_all(float* to, int64_t count) {
    convert_some(to, 0, count);
    all = to;
  }
};

// Rows that are added up: floats, or bfloat16 numbers as they lie in memory.
template <class Number>
struct BlockRows {
  const Number* first;
  int64_t apart;

  Vec load(int64_t i, int64_t at) const {
    if constexpr (sizeof(Number) == sizeof(float)) return load_any(first + i * apart + at);
    else return load_bfloat16(first + i * apart + at);
  }
};

static FloatRows float_rows(const MeansPlan& plan, const void* tensor, const int64_t strides[3], int64_t batch,
                            int64_t head, float* one) {
  const NMForwardArgs& args = *plan.args;
  const char* base = element(tensor, batch * strides[0] + head * strides[1], args.dtype);
  const bool straight = args.dtype == DYNATTN_FLOAT32 && args.head_dim % kWidth == 0;
  return {base, strides[2], args.head_dim, plan.width, args.dtype, one, nullptr, straight};
}

DYNATTN_INLINE void clear(float* to, int64_t width) {
  for (int64_t at = 0; at < width; at += kWidth) store(to + at, zero());
}

// to += factor · from
DYNATTN_INLINE void add_scaled(float* to, const float* from, float factor, int64_t width) {
  const Vec by = broadcast(factor);
  for (int64_t at = 0; at < width; at += kWidth) store(to + at, fmadd(by, load_any(from + at), load(to + at)));
}

DYNATTN_INLINE float product(const float* a, const float* b, int64_t width) {
  Vec sum = zero();
  for (int64_t at = 0; at < width; at += kWidth) sum = fmadd(load_any(a + at), load_any(b + at), sum);
  return reduce_add(sum);
}

static bool all_finite(const float* from, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; i++) finite &= from[i] - from[i] == 0.0f;
  return finite;
}

// Score sum and number of the allowed pairs of a block.
struct PairSums {
  float products;  // Σ q · k
  float bias;      // Σ of what a mask adds
  int64_t count;
};

// A head's sums, and a thread's room.
struct MeansRoom {
  float *key_sums, *query_sums, *units, *acc, *one, *other, *block, *all_keys, *mask_row;
  int32_t* key_counts;  // allowed keys of a block, where the mask has no row for each query
  uint8_t *allowed, *keys_alike, *queries_alike;
  float* values;     // [columns]
  int64_t* counts;   // [columns]
  int32_t* order;    // [columns]
  float* weights;    // [columns]
  uint8_t* forced;   // [columns]
};

static MeansRoom lay_means(const MeansPlan& plan, Arena& arena) {
  const NMForwardArgs& args = *plan.args;
  MeansRoom room;
  room.key_sums = arena.take<float>(plan.columns * plan.width);
  room.query_sums = arena.take<float>(plan.rows * plan.width);
  room.units = arena.take<float>(plan.width);
  room.acc = arena.take<float>(plan.width);
  room.one = arena.take<float>(plan.width);
  room.other = arena.take<float>(plan.width);
  room.block = arena.take<float>(smaller(plan.size, larger(args.q_len, args.kv_len)) * plan.width);
  room.all_keys = arena.take<float>(plan.whole ? args.kv_len * plan.width : 0);
  room.mask_row = arena.take<float>(plan.by_query ? kMostBlock + kWidth : 0);
  room.key_counts = arena.take<int32_t>(plan.columns);
  room.allowed = arena.take<uint8_t>(args.kv_len);
  room.keys_alike = arena.take<uint8_t>(plan.columns);
  room.queries_alike = arena.take<uint8_t>(plan.rows);
  room.values = arena.take<float>(plan.columns);
  room.counts = arena.take<int64_t>(plan.columns);
  room.order = arena.take<int32_t>(plan.columns);
  room.weights = arena.take<float>(plan.columns);
  room.forced = arena.take<uint8_t>(plan.columns);
  return room;
}

// Calls `with` with rows [first, first + count): where they lie, or converted to `to`.
template <class With>
static void with_rows_of(const FloatRows& from, int64_t first, int64_t count, float* to, const With& with) {
  if (from.straight || from.all != nullptr) {
    return with(BlockRows<float>{from.row(first), from.all == nullptr ? from.stride : from.width});
  }
  if (from.dtype == DYNATTN_BFLOAT16 && from.dim == from.width) {
    const uint16_t* numbers = reinterpret_cast<const uint16_t*>(from.base);
    return with(BlockRows<uint16_t>{numbers + first * from.stride, from.stride});
  }
  from.convert_some(to, first, count);
  with(BlockRows<float>{to, from.width});
}

// Σ factor · row over the rows that count, kV vectors of it from `at` on; without factors, Σ row.
template <int kV, class Rows>
static void sum_vectors(const Rows& rows, int64_t at, int64_t count, const uint8_t* counted, const float* factors,
                        float* to) {
  Vec acc[kV];
  for (int v = 0; v < kV; v++) acc[v] = zero();
  for (int64_t i = 0; i < count; i++) {
    if (counted != nullptr && counted[i] == 0) continue;  // it may hold NaN
    const Vec by = broadcast(factors == nullptr ? 1.0f : factors[i]);
#pragma GCC unroll 4
    for (int v = 0; v < kV; v++) acc[v] = fmadd(by, rows.load(i, at + v * kWidth), acc[v]);
  }
  for (int v = 0; v < kV; v++) store(to + at + v * kWidth, acc[v]);
}

template <class Rows>
static void sum_counted(const Rows& rows, int64_t count, const uint8_t* counted, const float* factors, int64_t width,
                     float* to) {
  int64_t at = 0;
  for (; at + 4 * kWidth <= width; at += 4 * kWidth) sum_vectors<4>(rows, at, count, counted, factors, to);
  for (; at < width; at += kWidth) sum_vectors<1>(rows, at, count, counted, factors, to);
}

// What each row is multiplied by to have a length of 1.
template <class Rows>
static void scale_to_units(const Rows& rows, int64_t count, int64_t width, float* factors) {
  for (int64_t i = 0; i < count; i++) {
    Vec sum = zero();
    for (int64_t at = 0; at < width; at += kWidth) {
      const Vec x = rows.load(i, at);
      sum = fmadd(x, x, sum);
    }
    const float norm = sqrtf(reduce_add(sum));
    factors[i] = 1.0f / (norm < kShortest ? kShortest : norm);
  }
}

// Sums of the vectors of each block. `alike`: whether a block's vectors are alike, from the sums of the vectors divided
// by their norms, all of them; NULL where nobody asks. Returns false where a number is not finite.
static bool sum_blocks(const MeansPlan& plan, const MeansRoom& room, const FloatRows& from, int64_t count,
                       const uint8_t* counted, float* sums, uint8_t* alike) {
  const int64_t width = plan.width;
  bool finite = true;
  float factors[kMostBlock];
  for (int64_t first = 0, block = 0; first < count; first += plan.size, block++) {
    const int64_t some = smaller(plan.size, count - first);
    float* const to = sums + block * width;
    with_rows_of(from, first, some, room.block, [&](const auto& rows) {
      sum_counted(rows, some, counted == nullptr ? nullptr : counted + first, nullptr, width, to);
      if (alike == nullptr) return;
      scale_to_units(rows, some, width, factors);
      sum_counted(rows, some, nullptr, factors, width, room.units);
    });
    finite &= all_finite(to, width);
    if (alike == nullptr) continue;
    const float number = static_cast<float>(some);
    alike[block] = product(room.units, room.units, width) / (number * number) >= plan.rule->alike;  // NaN is like nothing
  }
  return finite;
}

// A query head: its queries, its keys and their sums.
struct MeansHead {
  FloatRows queries, keys;
  const char* mask;  // for this head; NULL without
  bool finite;
};

DYNATTN_INLINE const char* mask_at(const MeansPlan& plan, const MeansHead& head, int64_t query, int64_t key) {
  const NMForwardArgs& args = *plan.args;
  return element(head.mask, query * args.mask_strides[2] + key * args.mask_strides[3], args.mask_dtype);
}

// The allowed keys of [first, end) that a query may attend, by the mask alone, as 0, a bias or -inf.
static const float* row_of_mask(const MeansPlan& plan, const MeansRoom& room, const MeansHead& head, int64_t query,
                                int64_t first, int64_t count) {
  mask_to_floats(*plan.args, mask_at(plan, head, query, first), count, room.mask_row);
  return room.mask_row;
}

// One pair after another, since a number is not finite. A score of -inf is as good as forbidden.
static PairSums score_pairs(const MeansPlan& plan, const MeansRoom& room, const MeansHead& head, int64_t row,
                         int64_t column) {
  const NMForwardArgs& args = *plan.args;
  const int64_t first_key = column * plan.size, keys = smaller(plan.size, args.kv_len - first_key);
  PairSums sum = {0.0f, 0.0f, 0};
  for (int64_t i = row * plan.size; i < smaller((row + 1) * plan.size, args.q_len); i++) {
    const int64_t seen = args.causal ? smaller(keys, i + plan.offset + 1 - first_key) : keys;
    const float* query = head.queries.row(i);
    const float* bias = plan.by_query && seen > 0 ? row_of_mask(plan, room, head, i, first_key, seen) : nullptr;
    for (int64_t j = 0; j < seen; j++) {
      if (bias != nullptr ? bias[j] == -INFINITY : room.allowed[first_key + j] == 0) continue;
      const float exact = product(query, head.keys.row(first_key + j), plan.width) * args.scale;
      const float score = bias != nullptr ? exact + bias[j] : exact;
      if (score == -INFINITY) continue;
      sum.bias += score, sum.count++;
    }
  }
  return sum;
}

// A row of a mask over a block of keys: a bit for each key that it forbids, and the sum of what it adds to the others.
struct MaskRow {
  uint32_t forbidden[kMostBlock / kWidth];  // kWidth keys a word; those behind the last key are forbidden too
  int64_t words, allowed;
  float bias;
};

static void read_mask(const MeansPlan& plan, float* mask, int64_t seen, int64_t keys, MaskRow& row) {
  row.words = ceil_div(keys, kWidth), row.allowed = keys;
  for (int64_t j = seen; j < row.words * kWidth; j++) mask[j] = -INFINITY;
  const Vec lowest = broadcast(-FLT_MAX);
  Vec sum = zero();
  int64_t forbidden = 0;
  for (int64_t word = 0; word < row.words; word++) {
    const Vec x = load(mask + word * kWidth);
    const Mask none = greater(lowest, x);  // NaN is allowed
    row.forbidden[word] = bits(none);
    forbidden += __builtin_popcount(row.forbidden[word]);
    if (plan.has_bias) sum = add(sum, select(none, zero(), x));
  }
  row.allowed = row.words * kWidth - forbidden;
  row.bias = reduce_add(sum);
}

// kV vectors of `sum` plus or minus those of the keys whose bit is set.
template <int kV, bool kMinus>
static void add_keys(const FloatRows& keys, int64_t first, int64_t count, const MaskRow& row, const float* from,
                     int64_t at, float* to) {
  Vec acc[kV];
  for (int v = 0; v < kV; v++) acc[v] = kMinus ? load(from + at + v * kWidth) : zero();
  for (int64_t word = 0; word < row.words; word++) {
    uint32_t set = kMinus ? row.forbidden[word] : ~row.forbidden[word];
    const int64_t left = count - word * kWidth;
    set &= left < kWidth ? (uint32_t{1} << left) - 1 : (uint32_t{1} << kWidth) - 1;
    for (; set != 0; set &= set - 1) {
      const float* key = keys.row(first + word * kWidth + __builtin_ctz(set)) + at;
#pragma GCC unroll 4
      for (int v = 0; v < kV; v++) {
        acc[v] = kMinus ? sub(acc[v], load_any(key + v * kWidth)) : add(acc[v], load_any(key + v * kWidth));
      }
    }
  }
  for (int v = 0; v < kV; v++) store(to + at + v * kWidth, acc[v]);
}

// Σ of the allowed keys of a block, from the fewer of these and of the others.
template <bool kMinus>
static void sum_allowed(const MeansPlan& plan, const FloatRows& keys, int64_t first, int64_t count, const MaskRow& row,
                        const float* all, float* to) {
  int64_t at = 0;
  for (; at + 4 * kWidth <= plan.width; at += 4 * kWidth) add_keys<4, kMinus>(keys, first, count, row, all, at, to);
  for (; at < plan.width; at += kWidth) add_keys<1, kMinus>(keys, first, count, row, all, at, to);
}

// A block of a mask that has a row for each query.
static PairSums sum_masked(const MeansPlan& plan, const MeansRoom& room, const MeansHead& head, int64_t row,
                        int64_t column) {
  const NMForwardArgs& args = *plan.args;
  const int64_t first_key = column * plan.size, keys = smaller(plan.size, args.kv_len - first_key);
  const int64_t first = row * plan.size, end = smaller(first + plan.size, args.q_len);
  const float* key_sum = room.key_sums + column * plan.width;
  PairSums sum = {0.0f, 0.0f, 0};
  MaskRow mask;
  int64_t full = 0;  // queries that may attend all keys, whose products are made at the end
  clear(room.units, plan.width);
  for (int64_t i = first; i < end; i++) {
    const int64_t seen = args.causal ? smaller(keys, i + plan.offset + 1 - first_key) : keys;
    if (seen <= 0) continue;
    row_of_mask(plan, room, head, i, first_key, seen);
    read_mask(plan, room.mask_row, seen, keys, mask);
    sum.bias += mask.bias;
    sum.count += mask.allowed;
    if (mask.allowed == keys) {
      full++;
      add_scaled(room.units, head.queries.row(i), 1.0f, plan.width);
      continue;
    }
    if (mask.allowed == 0) continue;
    if (2 * mask.allowed <= keys) {
      sum_allowed<false>(plan, head.keys, first_key, keys, mask, key_sum, room.acc);
    } else {
      sum_allowed<true>(plan, head.keys, first_key, keys, mask, key_sum, room.acc);
    }
    sum.products += product(head.queries.row(i), room.acc, plan.width);
  }
  if (full > 0) sum.products += product(room.units, key_sum, plan.width);
  return sum;
}

// A block that the diagonal cuts, of keys that are allowed to all queries or to none. From query to query the sum of the
// keys that it may attend grows.
static PairSums sum_cut(const MeansPlan& plan, const MeansRoom& room, const MeansHead& head, int64_t row, int64_t column) {
  const NMForwardArgs& args = *plan.args;
  const int64_t first_key = column * plan.size, keys = smaller(plan.size, args.kv_len - first_key);
  PairSums sum = {0.0f, 0.0f, 0};
  int64_t at = 0, allowed = 0;
  clear(room.acc, plan.width);
  for (int64_t i = row * plan.size; i < smaller((row + 1) * plan.size, args.q_len); i++) {
    for (; at < smaller(keys, i + plan.offset + 1 - first_key); at++) {
      if (room.allowed[first_key + at] == 0) continue;
      add_scaled(room.acc, head.keys.row(first_key + at), 1.0f, plan.width);
      allowed++;
    }
    if (allowed > 0) sum.products += product(head.queries.row(i), room.acc, plan.width);
    sum.count += allowed;
  }
  return sum;
}

static PairSums sum_pairs(const MeansPlan& plan, const MeansRoom& room, const MeansHead& head, int64_t row, int64_t column) {
  const NMForwardArgs& args = *plan.args;
  const int64_t first = row * plan.size, end = smaller(first + plan.size, args.q_len);
  const int64_t first_key = column * plan.size, last_key = smaller(first_key + plan.size, args.kv_len) - 1;
  if (args.causal && first_key > end - 1 + plan.offset) return {0.0f, 0.0f, 0};
  if (!head.finite) return score_pairs(plan, room, head, row, column);
  if (plan.by_query) return sum_masked(plan, room, head, row, column);
  if (args.causal && last_key > first + plan.offset) return sum_cut(plan, room, head, row, column);
  const float* queries = room.query_sums + row * plan.width;
  return {product(queries, room.key_sums + column * plan.width, plan.width), 0.0f,
          (end - first) * room.key_counts[column]};
}

// Mean scores and numbers of allowed pairs of a row of blocks.
static void mean_row(const MeansPlan& plan, const MeansRoom& room, const MeansHead& head, int64_t row) {
  for (int64_t column = 0; column < plan.columns; column++) {
    const PairSums pairs = sum_pairs(plan, room, head, row, column);
    const float count = static_cast<float>(larger<int64_t>(pairs.count, 1));
    room.counts[column] = pairs.count;
    room.values[column] = (pairs.products * plan.args->scale + pairs.bias) / count;
  }
}

// Which keys a mask allows to all queries, and how many of each block.
static void allow_keys(const MeansPlan& plan, const MeansRoom& room, const char* mask) {
  const NMForwardArgs& args = *plan.args;
  const bool masked = mask != nullptr && !plan.by_query;
  for (int64_t j = 0; j < args.kv_len; j++) room.allowed[j] = masked ? mask[j * args.mask_strides[3]] != 0 : 1;
  for (int64_t column = 0; column < plan.columns; column++) {
    const int64_t first = column * plan.size, end = smaller(first + plan.size, args.kv_len);
    int32_t count = 0;
    for (int64_t j = first; j < end; j++) count += room.allowed[j];
    room.key_counts[column] = count;
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
