// A case of the driver, and its tensors: every buffer is a heap block of exactly the elements that its strides reach,
// so that a sanitizer sees a read or write one element outside. Outputs start as NaN. Queries, keys and biases are
// small integers: scores are exact, ties are many, and the choice has one right answer.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "dynattn_cpu.h"

namespace driver {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Pattern {
  int n, m, window, sinks, stride = 1;
  int within = 0, within_sinks = 0;
  bool beyond_blocks = false;
};

struct Shape {
  int batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim;
};

// What a row keeps by its own scores, as RowForwardArgs has it; most 0: N:M chooses.
struct Rule {
  int64_t most = 0, floor = 0, numerator = 1, denominator = 1;
  float weight = -1.0f, mass = 0.0f;
};

// kLow: small biases, except that one query has the lowest float for all keys, and one has -1e4.
enum class Mask { kNone, kBool, kKeyPadding, kFloat, kHalf, kLow };
enum class Order { kHeadsFirst, kLengthFirst, kGaps, kSharedBatch };
enum class Trouble { kNone, kNanKey, kInfiniteValue, kOverflow, kNanBias };

struct Case {
  Pattern pattern;
  Shape shape;
  Mask mask = Mask::kNone;
  Order order = Order::kHeadsFirst;
  Trouble trouble = Trouble::kNone;
  bool causal = false, aux = false;
  bool rounded = false;  // no gradient follows: of the tile kernels, the variant that sums weights as rounded
  int parts = 0;         // of the tile kernels, float32 by so many parts, forward
  int dtype = DYNATTN_FLOAT32, isa = DYNATTN_ISA_PORTABLE, threads = 1;
  float scale = 0.25f;
  int block_size = 0;  // queries and keys of the blocks that may be dropped whole; 0 for none
  float margin = -1.0f;  // at least 0: running maxima drop blocks of DYNATTN_SKIP_QUERIES and DYNATTN_SKIP_KEYS, of those
                         // that the blocks of block_size keep
  Rule rule;
  double dropout_p = 0.0;
  uint64_t seed = 0;
};

// A word below this drops its pair.
inline uint32_t drop_below(const Case& c) { return static_cast<uint32_t>(c.dropout_p * 0x1p32); }

inline unsigned long long state = 1;
inline int random_int(int low, int high) {  // a linear congruential generator: the same cases everywhere
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return low + static_cast<int>((state >> 33) % static_cast<unsigned>(high - low + 1));
}

// Only values that each dtype holds exactly are stored, so the conversions here need no rounding.
inline unsigned short to_half(float x, int dtype) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (dtype == DYNATTN_BFLOAT16) return static_cast<unsigned short>(bits >> 16);
  const unsigned sign = bits >> 16 & 0x8000u;
  if (x == 0.0f) return static_cast<unsigned short>(sign);
  if (std::isinf(x)) return static_cast<unsigned short>(sign | 0x7c00u);
  if (std::isnan(x)) return 0x7e00u;
  return static_cast<unsigned short>(sign | ((bits & 0x7fffffffu) - 0x38000000u) >> 13);
}

inline double from_half(unsigned short x, int dtype) {
  if (dtype == DYNATTN_BFLOAT16) {
    const unsigned bits = static_cast<unsigned>(x) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
  }
  const int exponent = x >> 10 & 31, fraction = x & 1023;
  const double sign = x & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? std::nan("") : sign * kInf;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

// A (batch, heads, length, dim) tensor in a heap block that ends with its last element.
struct Tensor {
  int dtype;
  int64_t strides[3];
  size_t count;
  std::unique_ptr<unsigned char[]> data;

  Tensor(const Shape& s, int heads, int length, int dim, int type, Order order) : dtype(type) {
    int64_t row = dim + (order == Order::kGaps ? 3 : 0);
    if (order == Order::kLengthFirst) {
      strides[1] = row, strides[2] = heads * row, strides[0] = length * strides[2];
    } else {
      strides[2] = row, strides[1] = length * row, strides[0] = order == Order::kSharedBatch ? 0 : heads * strides[1];
    }
    const bool empty = s.batch * heads * length == 0;
    count = empty ? 0
                  : static_cast<size_t>((s.batch - 1) * strides[0] + (heads - 1) * strides[1] +
                                        (length - 1) * strides[2] + dim);
    data.reset(new unsigned char[count * size()]);
  }
  size_t size() const { return dtype == DYNATTN_FLOAT32 ? 4 : dtype == DYNATTN_BOOL ? 1 : 2; }
  int64_t at(int b, int h, int i) const { return b * strides[0] + h * strides[1] + i * strides[2]; }
  void set(int64_t index, float x) {
    if (dtype == DYNATTN_FLOAT32) {
      std::memcpy(&data[static_cast<size_t>(index) * 4], &x, 4);
    } else {
      const unsigned short half = to_half(x, dtype);
      std::memcpy(&data[static_cast<size_t>(index) * 2], &half, 2);
    }
  }
  // All of it, as the naive loops read it, many times.
  std::vector<double> numbers() const {
    std::vector<double> all(count);
    for (size_t i = 0; i < count; i++) all[i] = get(static_cast<int64_t>(i));
    return all;
  }
  double get(int64_t index) const {
    if (dtype == DYNATTN_FLOAT32) {
      float x;
      std::memcpy(&x, &data[static_cast<size_t>(index) * 4], 4);
      return x;
    }
    unsigned short half;
    std::memcpy(&half, &data[static_cast<size_t>(index) * 2], 2);
    return from_half(half, dtype);
  }
};

struct Problem {
  Case c;
  Tensor query, key, value, out;
  std::vector<double> queries, keys, values;  // the numbers of the inputs
  std::vector<unsigned char> mask;
  int64_t mask_strides[4] = {0, 0, 0, 0};
  std::vector<unsigned char> blocks;
  std::vector<unsigned char> among;  // with a margin: the blocks of block_size

  explicit Problem(const Case& given)
      : c(given),
        query(c.shape, c.shape.heads, c.shape.q_len, c.shape.head_dim, c.dtype, c.order),
        key(c.shape, c.shape.kv_heads, c.shape.kv_len, c.shape.head_dim, c.dtype, c.order),
        value(c.shape, c.shape.kv_heads, c.shape.kv_len, c.shape.value_dim, c.dtype, c.order),
        out(c.shape, c.shape.heads, c.shape.q_len, c.shape.value_dim, c.dtype,
            c.order == Order::kSharedBatch ? Order::kHeadsFirst : c.order) {
    for (size_t i = 0; i < query.count; i++) query.set(static_cast<int64_t>(i), static_cast<float>(random_int(-2, 2)));
    for (size_t i = 0; i < key.count; i++) key.set(static_cast<int64_t>(i), static_cast<float>(random_int(-2, 2)));
    for (size_t i = 0; i < value.count; i++) {
      value.set(static_cast<int64_t>(i), static_cast<float>(random_int(-32, 32)) / 16.0f);
    }
    for (size_t i = 0; i < out.count; i++) out.set(static_cast<int64_t>(i), NAN);
    fill_mask();
    fill_blocks();
    make_trouble();
    queries = query.numbers(), keys = key.numbers(), values = value.numbers();
  }

  // A row of an input.
  const double* query_row(int b, int h, int i) const { return queries.data() + query.at(b, h, i); }
  const double* key_row(int b, int h, int j) const { return keys.data() + key.at(b, h, j); }
  const double* value_row(int b, int h, int j) const { return values.data() + value.at(b, h, j); }

  int mask_dtype() const {
    return is_float() ? DYNATTN_FLOAT32 : c.mask == Mask::kHalf ? DYNATTN_FLOAT16 : DYNATTN_BOOL;
  }
  bool is_float() const { return c.mask == Mask::kFloat || c.mask == Mask::kLow; }
  size_t mask_size() const { return is_float() ? 4 : c.mask == Mask::kHalf ? 2 : 1; }

  void fill_mask() {
    if (c.mask == Mask::kNone) return;
    const Shape& s = c.shape;
    const bool rows = c.mask != Mask::kKeyPadding;
    mask_strides[3] = 1;
    mask_strides[2] = rows ? s.kv_len : 0;
    mask_strides[1] = c.mask == Mask::kBool ? s.q_len * s.kv_len : 0;
    mask_strides[0] = rows ? mask_strides[1] * (c.mask == Mask::kBool ? s.heads : 0) : s.kv_len;
    const int64_t count =
        s.kv_len * int64_t{rows ? s.q_len : s.batch} * (c.mask == Mask::kBool ? s.batch * s.heads : 1);
    mask.resize(static_cast<size_t>(count) * mask_size());
    mask.shrink_to_fit();
    for (int64_t i = 0; i < count; i++) {
      const bool allowed = random_int(0, 3) > 0;
      const float bias = allowed ? static_cast<float>(random_int(-2, 2)) : -INFINITY;
      set_mask(i, allowed, bias);
    }
    if (count > 0 && c.mask == Mask::kLow) {
      for (int64_t j = 0; j < s.kv_len; j++) {
        set_mask(s.q_len / 3 * mask_strides[2] + j, true, -1e4f);
        set_mask(s.q_len / 2 * mask_strides[2] + j, true, -std::numeric_limits<float>::max());
      }
    } else if (count > 0 && rows && s.q_len > 1) {  // a row with nothing allowed
      for (int64_t j = 0; j < s.kv_len; j++) set_mask(mask_strides[2] + j, false, -INFINITY);
    }
  }
  bool has_blocks() const { return c.block_size > 0 || c.margin >= 0.0f; }
  int block_queries() const { return c.margin >= 0.0f ? int{DYNATTN_SKIP_QUERIES} : c.block_size; }
  int block_keys() const { return c.margin >= 0.0f ? int{DYNATTN_SKIP_KEYS} : c.block_size; }
  int64_t block_at(int b, int h, int i, int j) const { return block_at(b, h, i, j, block_queries(), block_keys()); }
  int64_t block_at(int b, int h, int i, int j, int queries, int keys) const {
    const int64_t rows = (c.shape.q_len + queries - 1) / queries, columns = (c.shape.kv_len + keys - 1) / keys;
    return ((int64_t{b} * c.shape.heads + h) * rows + i / queries) * columns + j / keys;
  }
  // Whether the kernel has kept a pair of a block that was dropped before.
  bool kept_beyond() const {
    const Shape& s = c.shape;
    for (int b = 0; !among.empty() && b < s.batch; b++) {
      for (int h = 0; h < s.heads; h++) {
        for (int i = 0; i < s.q_len; i++) {
          for (int j = 0; j < s.kv_len; j++) {
            if (blocks[static_cast<size_t>(block_at(b, h, i, j))] &&
                !among[static_cast<size_t>(block_at(b, h, i, j, c.block_size, c.block_size))])
              return true;
          }
        }
      }
    }
    return false;
  }
  void fill_blocks() {
    const Shape& s = c.shape;
    if (!has_blocks()) return;
    const bool some = s.batch * s.heads * s.q_len * s.kv_len > 0;
    blocks.resize(some ? static_cast<size_t>(block_at(s.batch - 1, s.heads - 1, s.q_len - 1, s.kv_len - 1)) + 1 : 0);
    blocks.shrink_to_fit();
    if (c.margin >= 0.0f) {  // the kernel fills them in
      if (!some || c.block_size == 0) return;
      const int size = c.block_size;
      among.resize(static_cast<size_t>(block_at(s.batch - 1, s.heads - 1, s.q_len - 1, s.kv_len - 1, size, size)) + 1);
      among.shrink_to_fit();
      for (unsigned char& block : among) block = random_int(0, 1) == 0 ? 1 : 0;
      return;
    }
    for (unsigned char& block : blocks) block = random_int(0, 2) == 0 ? 1 : 0;
    for (int j = 0; some && j < s.kv_len; j++) blocks[static_cast<size_t>(block_at(0, s.heads - 1, 0, j))] = 0;
  }
  void set_mask(int64_t i, bool allowed, float bias) {
    unsigned char* at = mask.data() + static_cast<size_t>(i) * mask_size();
    const unsigned short half = to_half(bias, DYNATTN_FLOAT16);
    if (is_float())
      std::memcpy(at, &bias, 4);
    else if (c.mask == Mask::kHalf)
      std::memcpy(at, &half, 2);
    else
      *at = allowed;
  }
  // -inf: forbidden; 0 without a mask.
  int distance(int i, int j) const { return std::abs(i + c.shape.kv_len - c.shape.q_len - j); }
  bool is_joined(int i, int j) const { return distance(i, j) < c.pattern.window || j < c.pattern.sinks; }
  bool is_cut(int i, int j) const {
    return c.pattern.within > 0 && distance(i, j) >= c.pattern.within && j >= c.pattern.within_sinks;
  }
  double bias(int b, int h, int i, int j) const {
    const int64_t offset = c.shape.kv_len - c.shape.q_len;
    if (c.causal && j > i + offset) return -kInf;
    const bool spared = c.pattern.beyond_blocks && is_joined(i, j);
    if (has_blocks() && !spared && !blocks[static_cast<size_t>(block_at(b, h, i, j))]) return -kInf;
    if (c.mask == Mask::kNone) return 0.0;
    const int64_t index = b * mask_strides[0] + h * mask_strides[1] + i * mask_strides[2] + j * mask_strides[3];
    const unsigned char* at = mask.data() + static_cast<size_t>(index) * mask_size();
    if (is_float()) {
      float x;
      std::memcpy(&x, at, 4);
      return x;
    }
    unsigned short half;
    if (c.mask == Mask::kHalf) return std::memcpy(&half, at, 2), from_half(half, DYNATTN_FLOAT16);
    return *at ? 0.0 : -kInf;
  }
  void make_trouble() {
    const Shape& s = c.shape;
    if (s.batch * s.heads * s.q_len * s.kv_len == 0) return;
    const int middle = s.kv_len / 2;
    if (c.trouble == Trouble::kNanKey) key.set(key.at(0, 0, middle), NAN);
    if (c.trouble == Trouble::kInfiniteValue) value.set(value.at(0, 0, middle) + s.value_dim - 1, INFINITY);
    if (c.trouble == Trouble::kNanBias && c.mask == Mask::kFloat) set_mask(middle, true, NAN);
    if (c.trouble == Trouble::kOverflow) {
      query.set(query.at(0, 0, s.q_len - 1), 0x1p100f), key.set(key.at(0, 0, middle), 0x1p100f);
    }
  }
};

}  // namespace driver
