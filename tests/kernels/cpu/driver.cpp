// The CPU kernels against a naive double loop, without Python: made to run under AddressSanitizer and UBSan.
//
// Every buffer is a heap block of exactly the elements that its strides reach, so that a read or write one element
// outside is seen. Outputs start as NaN. Queries, keys and biases are small integers: scores are exact, ties are
// many, and the choice has one right answer.
//
//     driver            prints "N passed, N failed"; exits with 1 when a case fails
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "dynattn_cpu.h"

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Pattern {
  int n, m, window, sinks, stride = 1;
};

struct Shape {
  int batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim;
};

enum class Mask { kNone, kBool, kKeyPadding, kFloat, kHalf };
enum class Order { kHeadsFirst, kLengthFirst, kGaps, kSharedBatch };
enum class Trouble { kNone, kNanKey, kInfiniteValue, kOverflow, kNanBias };

struct Case {
  Pattern pattern;
  Shape shape;
  Mask mask = Mask::kNone;
  Order order = Order::kHeadsFirst;
  Trouble trouble = Trouble::kNone;
  bool causal = false, aux = false;
  int dtype = DYNATTN_FLOAT32, isa = DYNATTN_ISA_PORTABLE, threads = 1;
  float scale = 0.25f;
};

unsigned long long state = 1;
int random_int(int low, int high) {  // a linear congruential generator: the same cases everywhere
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return low + static_cast<int>((state >> 33) % static_cast<unsigned>(high - low + 1));
}

// Only values that each dtype holds exactly are stored, so the conversions here need no rounding.
unsigned short to_half(float x, int dtype) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (dtype == DYNATTN_BFLOAT16) return static_cast<unsigned short>(bits >> 16);
  const unsigned sign = bits >> 16 & 0x8000u;
  if (x == 0.0f) return static_cast<unsigned short>(sign);
  if (std::isinf(x)) return static_cast<unsigned short>(sign | 0x7c00u);
  if (std::isnan(x)) return 0x7e00u;
  return static_cast<unsigned short>(sign | ((bits & 0x7fffffffu) - 0x38000000u) >> 13);
}

double from_half(unsigned short x, int dtype) {
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
  std::vector<unsigned char> mask;
  int64_t mask_strides[4] = {0, 0, 0, 0};

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
    make_trouble();
  }

  int mask_dtype() const {
    return c.mask == Mask::kFloat ? DYNATTN_FLOAT32 : c.mask == Mask::kHalf ? DYNATTN_FLOAT16 : DYNATTN_BOOL;
  }
  size_t mask_size() const { return c.mask == Mask::kFloat ? 4 : c.mask == Mask::kHalf ? 2 : 1; }

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
    if (count > 0 && rows && s.q_len > 1) {  // a row with nothing allowed
      for (int64_t j = 0; j < s.kv_len; j++) set_mask(mask_strides[2] + j, false, -INFINITY);
    }
  }
  void set_mask(int64_t i, bool allowed, float bias) {
    unsigned char* at = mask.data() + static_cast<size_t>(i) * mask_size();
    const unsigned short half = to_half(bias, DYNATTN_FLOAT16);
    if (c.mask == Mask::kFloat)
      std::memcpy(at, &bias, 4);
    else if (c.mask == Mask::kHalf)
      std::memcpy(at, &half, 2);
    else
      *at = allowed;
  }
  // -inf: forbidden; 0 without a mask.
  double bias(int b, int h, int i, int j) const {
    const int64_t offset = c.shape.kv_len - c.shape.q_len;
    if (c.causal && j > i + offset) return -kInf;
    if (c.mask == Mask::kNone) return 0.0;
    const int64_t index = b * mask_strides[0] + h * mask_strides[1] + i * mask_strides[2] + j * mask_strides[3];
    const unsigned char* at = mask.data() + static_cast<size_t>(index) * mask_size();
    if (c.mask == Mask::kFloat) {
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

struct Row {
  std::vector<double> out;
  double logsumexp, kept_mass;
  int kept, allowed;
  double spread;  // largest magnitude of a weighted value: the unit of rounding
};

// The definition, for one query: a score is a float32 sum, which is exact here unless it overflows.
Row naive_row(const Problem& p, int b, int h, int i) {
  const Shape& s = p.c.shape;
  const Pattern& pattern = p.c.pattern;
  const int group = h / (s.heads / s.kv_heads);
  std::vector<double> score(static_cast<size_t>(s.kv_len));
  std::vector<bool> keep(score.size());
  auto beats = [&](int a, int z) {  // NaN first, then the larger, then the earlier
    const double x = score[static_cast<size_t>(a)], y = score[static_cast<size_t>(z)];
    if (std::isnan(x) != std::isnan(y)) return std::isnan(x);
    return std::isnan(x) || x == y ? a < z : x > y;
  };
  for (int j = 0; j < s.kv_len; j++) {
    float sum = 0.0f;
    for (int d = 0; d < s.head_dim; d++) {
      sum += static_cast<float>(p.query.get(p.query.at(b, h, i) + d) * p.key.get(p.key.at(b, group, j) + d));
    }
    const double bias = p.bias(b, h, i, j);
    score[static_cast<size_t>(j)] = bias == -kInf ? bias : double{sum} * p.c.scale + bias;
  }
  Row row = {std::vector<double>(static_cast<size_t>(s.value_dim)), -kInf, 1.0, 0, 0, 0.0};
  double largest = -kInf, kept = 0, all = 0;
  bool nan = false, infinite = false;
  for (int j = 0; j < s.kv_len; j++) {
    int better = 0;
    const int block = pattern.m * pattern.stride, start = j / block * block;
    for (int other = start; other < start + block && other < s.kv_len; other++)
      better += other != j && other % pattern.stride == j % pattern.stride && beats(other, j);
    const int distance = std::abs(i + s.kv_len - s.q_len - j);
    const double x = score[static_cast<size_t>(j)];
    keep[static_cast<size_t>(j)] = x != -kInf && (better < pattern.n || distance < pattern.window || j < pattern.sinks);
    row.allowed += x != -kInf;
    row.kept += keep[static_cast<size_t>(j)];
    nan = nan || std::isnan(x);
    infinite = infinite || x == kInf;
    if (x > largest) largest = x;
  }
  for (int j = 0; j < s.kv_len; j++) {
    const double x = score[static_cast<size_t>(j)];
    if (x == -kInf) continue;
    const double weight = std::exp(x - largest);
    all += weight;
    if (!keep[static_cast<size_t>(j)]) continue;
    kept += weight;
    for (int d = 0; d < s.value_dim; d++) {
      const double v = p.value.get(p.value.at(b, group, j) + d);
      row.out[static_cast<size_t>(d)] += weight * v;
      if (std::isfinite(v)) row.spread = std::fmax(row.spread, std::fabs(v));
    }
  }
  if (row.kept) row.logsumexp = largest + std::log(kept), row.kept_mass = kept / all;
  for (double& x : row.out) x = nan || infinite ? NAN : row.kept ? x / kept : 0.0;
  if (nan || infinite) row.kept_mass = NAN;
  if (nan || infinite) row.logsumexp = nan ? NAN : kInf;
  return row;
}

bool close(double got, double want, double tolerance) {
  if (std::isnan(want)) return std::isnan(got);
  if (std::isinf(want)) return got == want;
  return std::fabs(got - want) <= tolerance;
}

// Runs a case; returns what differs, or nothing.
std::string run(const Case& c) {
  Problem p(c);
  const Shape& s = c.shape;
  const size_t rows = static_cast<size_t>(s.batch) * static_cast<size_t>(s.heads * s.q_len);
  std::unique_ptr<float[]> logsumexp(new float[rows]), kept_mass(new float[rows]);
  std::unique_ptr<int32_t[]> kept(new int32_t[rows]), allowed(new int32_t[rows]);
  for (size_t i = 0; i < rows; i++) logsumexp[i] = kept_mass[i] = NAN, kept[i] = allowed[i] = -1;

  NMForwardArgs args = {};
  args.query = p.query.data.get(), args.key = p.key.data.get(), args.value = p.value.data.get();
  args.mask = c.mask == Mask::kNone ? nullptr : p.mask.data();
  args.out = p.out.data.get(), args.logsumexp = logsumexp.get();
  if (c.aux) args.kept_mass = kept_mass.get(), args.kept = kept.get(), args.allowed = allowed.get();
  for (int i = 0; i < 3; i++) {
    args.query_strides[i] = p.query.strides[i], args.key_strides[i] = p.key.strides[i];
    args.value_strides[i] = p.value.strides[i], args.out_strides[i] = p.out.strides[i];
  }
  for (int i = 0; i < 4; i++) args.mask_strides[i] = p.mask_strides[i];
  args.batch = s.batch, args.heads = s.heads, args.kv_heads = s.kv_heads, args.q_len = s.q_len, args.kv_len = s.kv_len;
  args.head_dim = s.head_dim, args.value_dim = s.value_dim, args.scale = c.scale, args.dtype = c.dtype;
  args.mask_dtype = p.mask_dtype(), args.n = c.pattern.n, args.m = c.pattern.m, args.window = c.pattern.window;
  args.sinks = c.pattern.sinks, args.stride = c.pattern.stride, args.causal = c.causal, args.isa = c.isa, args.threads = c.threads;
  const int32_t status = dynattn_nm_forward(&args);
  if (status != DYNATTN_OK) return "status " + std::to_string(status);

  // Half-precision results are rounded once more, to 8 or 11 bits.
  const double unit = c.dtype == DYNATTN_FLOAT32 ? 1e-6 : c.dtype == DYNATTN_BFLOAT16 ? 0x1p-8 : 0x1p-11;
  size_t at = 0;
  for (int b = 0; b < s.batch; b++) {
    for (int h = 0; h < s.heads; h++) {
      for (int i = 0; i < s.q_len; i++, at++) {
        const Row row = naive_row(p, b, h, i);
        const std::string where = " of row " + std::to_string(b) + ", " + std::to_string(h) + ", " + std::to_string(i);
        if (!close(logsumexp[at], row.logsumexp, 4e-6 * (1 + std::fabs(row.logsumexp)))) return "logsumexp" + where;
        if (c.aux && !close(kept_mass[at], row.kept_mass, 4e-6)) return "kept mass" + where;
        if (c.aux && (kept[at] != row.kept || allowed[at] != row.allowed)) return "counts" + where;
        for (int d = 0; d < s.value_dim; d++) {
          const double got = p.out.get(p.out.at(b, h, i) + d), want = row.out[static_cast<size_t>(d)];
          if (!close(got, want, unit * (1 + row.spread))) {
            return "out" + where + " at " + std::to_string(d) + ": got " + std::to_string(got) + ", want " +
                   std::to_string(want);
          }
        }
      }
    }
  }
  return "";
}

const char* const kIsaNames[] = {"portable", "avx2", "avx512"};

struct Counts {
  int passed = 0, failed = 0;

  void check(const Case& c) {
    const std::string wrong = run(c);
    if (wrong.empty()) {
      passed++;
      return;
    }
    failed++;
    const Shape& s = c.shape;
    std::printf(
        "FAILED %s %d:%d window %d sinks %d stride %d (%d,%d/%d,%d/%d,%d/%d) mask %d order %d trouble %d causal %d aux %d "
        "dtype %d threads %d scale %g: %s\n",
        kIsaNames[c.isa], c.pattern.n, c.pattern.m, c.pattern.window, c.pattern.sinks, c.pattern.stride, s.batch, s.heads, s.kv_heads,
        s.q_len, s.kv_len, s.head_dim, s.value_dim, static_cast<int>(c.mask), static_cast<int>(c.order),
        static_cast<int>(c.trouble), c.causal, c.aux, c.dtype, c.threads, static_cast<double>(c.scale), wrong.c_str());
  }
};

void check_isa(int isa, Counts& counts) {
  const Pattern patterns[] = {{1, 1, 0, 0},  {1, 2, 0, 0}, {2, 4, 0, 0},  {1, 4, 0, 0},   {3, 5, 0, 0},
                              {7, 31, 0, 0}, {1, 2, 5, 3}, {2, 4, 20, 1}, {1, 3, 400, 0}, {2, 4, 0, 70},
                              {1, 2, 0, 0, 16}, {2, 4, 0, 0, 16}, {1, 2, 5, 3, 16}, {2, 4, 20, 1, 3}, {1, 2, 0, 0, 32},
                              {2, 5, 0, 0, 51}};
  const Shape shapes[] = {{1, 1, 1, 1, 1, 1, 1},      {2, 2, 1, 7, 63, 8, 8},     {1, 4, 2, 65, 111, 20, 36},
                          {1, 1, 1, 130, 64, 64, 64}, {1, 2, 2, 13, 257, 32, 80}, {2, 1, 1, 5, 129, 5, 256},
                          {1, 1, 1, 3, 66, 256, 128}, {1, 4, 2, 1, 150, 24, 40},  {0, 1, 1, 4, 4, 8, 8},
                          {1, 1, 1, 3, 0, 8, 8},      {1, 1, 1, 0, 3, 8, 8},      {1, 2, 1, 200, 190, 16, 24}};
  int turn = 0;
  for (const Pattern& pattern : patterns) {
    for (const Shape& shape : shapes) {
      for (int mask = 0; mask <= 4; mask++) {
        for (int causal = 0; causal <= 1; causal++, turn++) {
          Case c;
          c.pattern = pattern, c.shape = shape, c.mask = static_cast<Mask>(mask), c.causal = causal != 0, c.isa = isa;
          c.order = static_cast<Order>(turn % 4);
          c.aux = turn % 3 == 0;
          c.dtype = turn % 5 == 0 ? DYNATTN_BFLOAT16 : turn % 5 == 1 ? DYNATTN_FLOAT16 : DYNATTN_FLOAT32;
          c.threads = 1 + turn % 3;
          c.scale = turn % 7 == 0 ? -0.25f : 0.25f;
          counts.check(c);
        }
      }
    }
    const Shape few[] = {{1, 2, 2, 1, 2300, 64, 64}, {2, 6, 2, 3, 1100, 20, 36}, {1, 2, 1, 6, 2049, 16, 80},
                         {1, 2, 1, 7, 2049, 16, 80}, {1, 65, 1, 1, 70, 8, 8}};
    for (const Shape& shape : few) {
      for (int mask = 0; mask <= 4; mask++, turn++) {
        Case c;
        c.pattern = pattern, c.shape = shape, c.mask = static_cast<Mask>(mask), c.isa = isa;
        c.causal = turn % 2 == 0, c.order = static_cast<Order>(turn % 4), c.aux = turn % 3 == 0;
        c.dtype = turn % 5, c.threads = 1 + turn % 3;
        if (c.dtype > DYNATTN_FLOAT16) c.dtype = DYNATTN_FLOAT32;
        c.trouble = static_cast<Trouble>(turn % 7 < 5 ? turn % 7 : 0);
        if (c.trouble == Trouble::kOverflow && c.dtype == DYNATTN_FLOAT16) c.trouble = Trouble::kNone;  // no 2^100
        counts.check(c);
      }
    }
    for (int trouble = 1; trouble <= 4; trouble++) {
      for (int mask = 0; mask <= 3; mask++) {
        Case c;
        c.pattern = pattern, c.shape = {1, 2, 1, 31, 140, 24, 20}, c.mask = static_cast<Mask>(mask), c.isa = isa;
        c.trouble = static_cast<Trouble>(trouble), c.causal = trouble % 2 == 0, c.aux = mask % 2 == 1;
        counts.check(c);
      }
    }
  }
}

}  // namespace

int main() {
  Counts counts;
  for (int isa : {DYNATTN_ISA_PORTABLE, DYNATTN_ISA_AVX2, DYNATTN_ISA_AVX512}) {
    if (dynattn_isa_available(isa))
      check_isa(isa, counts);
    else
      std::printf("%s: not run by this processor, skipped\n", kIsaNames[isa]);
  }
  std::printf("%d passed, %d failed\n", counts.passed, counts.failed);
  return counts.failed > 0 || counts.passed == 0;
}
