// The CPU kernels against naive loops, without Python: made to run under AddressSanitizer and UBSan.
//
//     driver portable       prints "portable: N passed, N failed"; exits with 1 when a case fails
//     driver avx512         likewise; says so and exits with 0 where the processor does not run it
//     driver tiles-portable the tile kernels likewise, which take bfloat16; so amx, avx512bf16
//     driver avx2 random    8 seconds of random cases only
//     driver neon few       a seventeenth of the cases that are not random, then random ones: in less time
//     driver avx2 1234      random case 1234 alone
#include <cstdio>
#include <ctime>
#include <initializer_list>
#include <string>

#include "linear.h"
#include "naive.h"
#include "random_case.h"
#include "texts.h"

using namespace driver;

namespace {

bool is_tiled(int isa) { return isa >= DYNATTN_ISA_TILES_PORTABLE && isa <= DYNATTN_ISA_AMX; }

bool close(double got, double want, double tolerance) {
  if (std::isnan(want)) return std::isnan(got);
  if (std::isinf(want)) return got == want;
  return std::fabs(got - want) <= tolerance;
}

// What a sum of `terms` rounds by: of float32 a few units, and as many more as a random walk of so many steps strays.
// Half-precision results are rounded once more, to 8 or 11 bits.
double unit_of(int dtype, int terms = 64) {
  if (dtype == DYNATTN_FLOAT32) return 0x1p-24 * (8 + std::sqrt(static_cast<double>(terms)));
  return dtype == DYNATTN_BFLOAT16 ? 0x1p-8 : 0x1p-11;
}

// What differs between a gradient and the naive one, or nothing. The kernel's weights come from a rounded logsumexp
// and its row sums from a rounded output, so that its errors are a few units of the terms' sum and of `size`, the
// magnitude of an output.
std::string compare(const char* name, const Tensor& got, const Sums& want, const Shape& s, int heads, int length,
                    int dim, double size) {
  size_t at = 0;
  for (int b = 0; b < s.batch; b++) {
    for (int h = 0; h < heads; h++) {
      for (int i = 0; i < length; i++) {
        for (int d = 0; d < dim; d++, at++) {
          if (close(got.get(got.at(b, h, i) + d), want.sum[at], 12 * unit_of(got.dtype) * (size + want.size[at])))
            continue;
          return std::string(name) + " of " + std::to_string(b) + ", " + std::to_string(h) + ", " + std::to_string(i) +
                 " at " + std::to_string(d) + ": got " + std::to_string(got.get(got.at(b, h, i) + d)) + ", want " +
                 std::to_string(want.sum[at]);
        }
      }
    }
  }
  return "";
}

// The backward of a case whose forward has run, and has these rows; with trouble in its inputs it only has to stay within
// its memory.
std::string run_backward(const Problem& p, const std::vector<Row>& rows, const NMForwardArgs& forward) {
  const Case& c = p.c;
  const Shape& s = c.shape;
  const Order order = c.order == Order::kSharedBatch ? Order::kHeadsFirst : c.order;
  Tensor grad_out(s, s.heads, s.q_len, s.value_dim, c.dtype, c.order);
  Tensor d_query(s, s.heads, s.q_len, s.head_dim, c.dtype, order);
  Tensor d_key(s, s.kv_heads, s.kv_len, s.head_dim, c.dtype, order);
  Tensor d_value(s, s.kv_heads, s.kv_len, s.value_dim, c.dtype, order);
  std::vector<float> grad_logsumexp(rows.size()), d_scores(rows.size() * static_cast<size_t>(s.kv_len));
  for (size_t i = 0; i < grad_out.count; i++) {
    grad_out.set(static_cast<int64_t>(i), static_cast<float>(random_int(-32, 32)) / 16.0f);
  }
  for (float& x : grad_logsumexp) x = static_cast<float>(random_int(-2, 2));
  for (Tensor* t : {&d_query, &d_key, &d_value}) {
    for (size_t i = 0; i < t->count; i++) t->set(static_cast<int64_t>(i), NAN);
  }
  NMBackwardArgs args = {};
  args.forward = forward;
  args.grad_out = grad_out.data.get(), args.grad_logsumexp = grad_logsumexp.data();
  args.d_query = d_query.data.get(), args.d_key = d_key.data.get(), args.d_value = d_value.data.get();
  args.d_scores = s.q_len % 2 ? d_scores.data() : nullptr;
  for (int i = 0; i < 3; i++) {
    args.grad_out_strides[i] = grad_out.strides[i], args.d_query_strides[i] = d_query.strides[i];
    args.d_key_strides[i] = d_key.strides[i], args.d_value_strides[i] = d_value.strides[i];
  }
  const int32_t status = dynattn_nm_backward(&args);
  if (status != DYNATTN_OK) return "status " + std::to_string(status) + " of the backward";
  if (c.trouble != Trouble::kNone) return "";

  const Gradients want = naive_gradients(p, rows, grad_out, grad_logsumexp);
  // A row's sum of grad_out * out is over value_dim products, each with the rounding of its output: a random walk, whose
  // length the case of 64 products is the measure of.
  const double size = std::sqrt(std::max(s.value_dim, 64) / 64.0) / (1.0 - c.dropout_p);
  std::string wrong = compare("d_query", d_query, want.query, s, s.heads, s.q_len, s.head_dim, size);
  if (wrong.empty()) wrong = compare("d_key", d_key, want.key, s, s.kv_heads, s.kv_len, s.head_dim, size);
  if (wrong.empty()) wrong = compare("d_value", d_value, want.value, s, s.kv_heads, s.kv_len, s.value_dim, size);
  for (size_t i = 0; wrong.empty() && args.d_scores != nullptr && i < d_scores.size(); i++) {
    if (!close(d_scores[i], want.scores[i], 500 * size * unit_of(c.dtype))) wrong = "d_scores at " + std::to_string(i);
  }
  return wrong;
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
  args.sinks = c.pattern.sinks, args.stride = c.pattern.stride, args.causal = c.causal, args.isa = c.isa,
  args.threads = c.threads, args.seed = c.seed, args.drop_below = drop_below(c);
  args.keep_factor = static_cast<float>(1.0 / (1.0 - c.dropout_p));
  args.within = c.pattern.within, args.within_sinks = c.pattern.within_sinks;
  args.beyond_blocks = c.pattern.beyond_blocks;
  const std::vector<unsigned char>& given = c.margin >= 0.0f ? p.among : p.blocks;
  if (c.block_size > 0) args.blocks = given.data(), args.block_queries = args.block_size = c.block_size;
  args.needs_grad = !c.aux && !c.rounded;
  args.parts = c.parts;
  std::unique_ptr<float[]> threshold(new float[rows]);
  std::unique_ptr<int32_t[]> last_tie(new int32_t[rows]);
  if (c.rule.most > 0 && !c.rounded) args.threshold = threshold.get(), args.last_tie = last_tie.get();
  const RowForwardArgs by_row = {args, c.rule.most, c.rule.floor, c.rule.numerator, c.rule.denominator, c.rule.weight,
                                c.rule.mass};
  const SkipForwardArgs by_margin = {args, p.blocks.data(), c.margin};
  const int32_t status = c.margin >= 0.0f  ? dynattn_skip_forward(&by_margin)
                         : c.rule.most > 0 ? dynattn_row_forward(&by_row)
                                           : dynattn_nm_forward(&args);
  if (c.margin >= 0.0f) {  // from here on, what was kept is given
    args.blocks = p.blocks.data(), args.block_queries = p.block_queries(), args.block_size = p.block_keys();
  }
  if (status != DYNATTN_OK) return "status " + std::to_string(status);
  if (p.kept_beyond()) return "a dropped block is kept";

  std::vector<Row> naive;
  for (int b = 0; b < s.batch; b++) {
    for (int h = 0; h < s.heads; h++) {
      for (int i = 0; i < s.q_len; i++) {
        const size_t at = naive.size();
        naive.push_back(naive_row(p, b, h, i));
        const Row& row = naive.back();
        if (!row.certain) return "";
        const std::string where = " of row " + std::to_string(b) + ", " + std::to_string(h) + ", " + std::to_string(i);
        const double rounding = args.needs_grad || c.aux || !is_tiled(c.isa)
                                    ? 4e-6 * (1 + std::fabs(row.logsumexp))
                                : c.parts > 0 ? 4e-6 * (1 + std::fabs(row.logsumexp))
                                              : 0x1p-8;  // that of bfloat16 weights
        if (!close(logsumexp[at], row.logsumexp, rounding)) return "logsumexp" + where;
        if (c.aux && !close(kept_mass[at], row.kept_mass, 4e-6)) return "kept mass" + where;
        if (c.aux && (kept[at] != row.kept || allowed[at] != row.allowed)) return "counts" + where;
        for (int d = 0; d < s.value_dim; d++) {
          const double got = p.out.get(p.out.at(b, h, i) + d), want = row.out[static_cast<size_t>(d)];
          const double unit = unit_of(c.dtype, row.kept) * (is_tiled(c.isa) ? 2 : 1);  // weights too
          if (!close(got, want, unit * (1 + row.spread))) {
            return "out" + where + " at " + std::to_string(d) + ": got " + std::to_string(got) + ", want " +
                   std::to_string(want);
          }
        }
      }
    }
  }
  return c.aux || c.rounded ? "" : run_backward(p, naive, args);
}

const char* const kIsaNames[] = {"portable", "avx2", "avx512", "tiles-portable", "avx512bf16", "amx", "neon"};

struct Counts {
  int passed = 0, failed = 0;
  int each = 1, seen = 0;  // one case of so many is run

  void check(const TextsCase& c) {
    if (seen++ % each != 0) return;
    const std::string wrong = run_texts(c);
    wrong.empty() ? passed++ : failed++;
    if (wrong.empty()) return;
    std::printf("FAILED %s texts %d:%d window %d sinks %d stride %d heads %d/%d dims %d/%d pages of %d ",
                kIsaNames[c.isa], c.pattern.n, c.pattern.m, c.pattern.window, c.pattern.sinks, c.pattern.stride,
                c.heads, c.kv_heads, c.head_dim, c.value_dim, c.page_size);
    std::printf("causal %d aux %d dtype %d threads %d: %s\n", c.causal, c.aux, c.dtype, c.threads, wrong.c_str());
  }

  void check(const LinearCase& c) {
    if (seen++ % each != 0) return;
    const std::string wrong = run_linear(c);
    wrong.empty() ? passed++ : failed++;
    if (wrong.empty()) return;
    std::printf("FAILED %s linear %d tokens %d inputs %d outputs %d gap %d %d:%d dtype %d of weights %d threads %d keep %d: %s\n",
                kIsaNames[c.isa], static_cast<int>(c.kind), c.tokens, c.inputs, c.outputs, c.gap, c.n, c.m, c.dtype,
                c.weight_dtype, c.threads, c.keep_percent, wrong.c_str());
  }

  void check(Case c) {
    if (seen++ % each != 0) return;
    if (is_tiled(c.isa)) {
      const bool takes_parts = c.isa != DYNATTN_ISA_AVX512BF16;
      c.parts = takes_parts && c.dtype == DYNATTN_FLOAT32 && c.threads == 2 && c.dropout_p == 0.0 ? 3 : 0;
      c.dtype = c.parts > 0 ? DYNATTN_FLOAT32 : DYNATTN_BFLOAT16, c.rule = Rule();
      c.rounded = !c.aux && (c.threads == 2 || c.parts > 0);
    }
    const std::string wrong = run(c);
    if (wrong.empty()) {
      passed++;
      return;
    }
    failed++;
    const Shape& s = c.shape;
    std::printf("FAILED %s %d:%d window %d sinks %d stride %d (%d,%d/%d,%d/%d,%d/%d) mask %d order %d trouble %d ",
                kIsaNames[c.isa], c.pattern.n, c.pattern.m, c.pattern.window, c.pattern.sinks, c.pattern.stride,
                s.batch, s.heads, s.kv_heads, s.q_len, s.kv_len, s.head_dim, s.value_dim, static_cast<int>(c.mask),
                static_cast<int>(c.order), static_cast<int>(c.trouble));
    std::printf("within %d sinks %d beyond %d ", c.pattern.within, c.pattern.within_sinks, c.pattern.beyond_blocks);
    std::printf("causal %d aux %d dtype %d threads %d scale %g block_size %d most %d weight %g mass %g dropout %g: %s\n",
                c.causal, c.aux, c.dtype, c.threads, static_cast<double>(c.scale), c.block_size,
                static_cast<int>(c.rule.most), static_cast<double>(c.rule.weight), static_cast<double>(c.rule.mass), c.dropout_p, wrong.c_str());
  }
};

// Random cases until the processor's time or the cases are used up.
void check_random(int isa, Counts& counts) {
  constexpr double kSeconds = 8;
  constexpr int kCases = 4000;
  const std::clock_t start = std::clock();
  for (int number = 0; number < kCases; number++) {
    if (static_cast<double>(std::clock() - start) > kSeconds * CLOCKS_PER_SEC) break;
    const int failed = counts.failed;
    counts.check(random_case(isa, number));
    if (counts.failed > failed) std::printf("       random case %d\n", number);
  }
}

// Blocks that are dropped whole, of sizes that fall together with bands of rows and tiles of keys, and that do not.
void check_blocks(const Pattern& pattern, const Shape& shape, int isa, int turn, Counts& counts) {
  const int sizes[] = {1, 5, 16, 24, 48, 64, 100, 1024};
  Case c;
  c.pattern = pattern, c.shape = shape, c.isa = isa, c.block_size = sizes[turn % 8];
  c.mask = turn % 3 == 2 ? static_cast<Mask>(turn / 3 % 5) : Mask::kNone;
  c.order = static_cast<Order>(turn / 5 % 4), c.causal = turn % 4 == 1, c.aux = turn % 5 == 0, c.threads = 1 + turn % 3;
  c.dtype = turn % 7 == 0 ? DYNATTN_BFLOAT16 : DYNATTN_FLOAT32;
  counts.check(c);
}

// Rows that choose by their own scores.
void check_rows(int isa, Counts& counts) {
  constexpr int64_t kAll = int64_t{1} << 40;
  const Rule rules[] = {{1}, {17}, {kAll, 0, 1, 4}, {kAll, 0, 9, 10}, {kAll, 32, 1, 4}, {1, 0, 1, 1, 0.013f},
                        {1, 0, 1, 1, -1.0f, 0.9137f}, {1, 0, 1, 1, -1.0f, 0.413f}};
  const Shape shapes[] = {{1, 1, 1, 1, 1, 1, 1},      {2, 2, 1, 7, 63, 8, 8},    {1, 4, 2, 65, 111, 20, 36},
                          {1, 1, 1, 130, 64, 64, 64}, {1, 2, 2, 13, 257, 5, 80}, {2, 1, 1, 5, 129, 5, 256},
                          {1, 1, 1, 3, 66, 256, 128}, {1, 4, 2, 1, 150, 24, 40}, {0, 1, 1, 4, 4, 8, 8},
                          {1, 1, 1, 3, 0, 8, 8},      {1, 1, 1, 0, 3, 8, 8},     {1, 1, 1, 9, 1100, 3, 64},
                          {1, 1, 1, 5, 70, 512, 257}};
  int turn = 0;
  for (const Rule& rule : rules) {
    for (const Shape& shape : shapes) {
      for (int mask = 0; mask <= 4; mask++, turn++) {
        Case c;
        c.pattern = {1, 1, 0, 0}, c.rule = rule, c.shape = shape, c.mask = static_cast<Mask>(mask), c.isa = isa;
        c.order = static_cast<Order>(turn % 4), c.causal = turn % 2 == 0, c.aux = turn % 3 == 0;
        c.dtype = turn % 5 == 0 ? DYNATTN_BFLOAT16 : turn % 5 == 1 ? DYNATTN_FLOAT16 : DYNATTN_FLOAT32;
        c.threads = 1 + turn % 3, c.scale = turn % 7 == 0 ? -0.25f : 0.25f;
        counts.check(c);
      }
    }
    for (int trouble = 1; trouble <= 4; trouble++) {
      for (int mask = 0; mask <= 3; mask++) {
        Case c;
        c.pattern = {1, 1, 0, 0}, c.rule = rule, c.shape = {1, 2, 1, 31, 140, 24, 20}, c.isa = isa;
        c.mask = static_cast<Mask>(mask), c.trouble = static_cast<Trouble>(trouble);
        c.causal = trouble % 2 == 0, c.aux = mask % 2 == 1;
        counts.check(c);
      }
    }
  }
}

// Few queries of such rows, whose keys are read in place where no gradient follows.
void check_few_rows(int isa, Counts& counts) {
  constexpr int64_t kAll = int64_t{1} << 40;
  const Rule rules[] = {{1}, {17}, {kAll, 0, 1, 10}, {kAll, 0, 9, 10}, {kAll, 40, 1, 4}, {1, 0, 1, 1, 0.013f},
                        {1, 0, 1, 1, -1.0f, 0.9137f}, {1, 0, 1, 1, -1.0f, 0.413f}};
  const Shape shapes[] = {{1, 1, 1, 1, 1, 1, 1},        {2, 6, 2, 3, 1100, 20, 36}, {1, 2, 2, 1, 2300, 64, 64},
                          {1, 4, 1, 2, 1030, 32, 96},   {1, 2, 1, 6, 520, 16, 80},  {1, 2, 1, 12, 70, 24, 80},
                          {1, 7, 1, 1, 513, 64, 128},   {1, 65, 1, 1, 70, 8, 8},    {2, 2, 1, 4, 0, 8, 8},
                          {1, 1, 1, 5, 3, 512, 257},    {40, 6, 3, 3, 600, 4, 4},   {1, 5, 1, 1, 1600, 128, 32}};
  int turn = 0;
  for (const Rule& rule : rules) {
    for (const Shape& shape : shapes) {
      for (int mask = 0; mask <= 4; mask++, turn++) {
        Case c;
        c.pattern = {1, 1, turn % 4 == 1 ? 30 : 0, turn % 4 == 1 ? 5 : 0}, c.rule = rule, c.shape = shape;
        c.mask = static_cast<Mask>(mask), c.isa = isa, c.aux = turn % 3 == 0, c.rounded = true;
        if (!c.aux && turn % 7 == 3) c.pattern.within = 200, c.pattern.within_sinks = 9;
        c.order = static_cast<Order>(turn % 4), c.causal = turn % 2 == 0;
        c.dtype = turn % 3 == 0 ? DYNATTN_FLOAT32 : turn % 9 == 1 ? DYNATTN_FLOAT16 : DYNATTN_BFLOAT16;
        if (turn % 5 == 1) c.dtype = DYNATTN_FLOAT32;
        c.threads = 1 + turn % 3, c.scale = turn % 7 == 0 ? -0.25f : 0.25f;
        c.trouble = static_cast<Trouble>(turn % 11 < 5 ? turn % 11 : 0);
        if (c.trouble == Trouble::kOverflow && c.dtype == DYNATTN_FLOAT16) c.trouble = Trouble::kNone;  // no 2^100 there
        if (c.trouble != Trouble::kNone) c.pattern.within = c.pattern.within_sinks = 0;
        counts.check(c);
      }
    }
  }
}

// Dense attention that skips by running maxima, some of it inside of blocks: the arithmetic, of what the kernel says that
// it kept.
void check_skips(int isa, Counts& counts) {
  const int sizes[] = {16, 48, 64, 128};
  const Shape shapes[] = {{1, 1, 1, 1, 1, 1, 1},      {2, 2, 1, 7, 63, 8, 8},    {1, 4, 2, 65, 111, 20, 36},
                          {1, 1, 1, 130, 64, 64, 64}, {1, 2, 2, 13, 257, 5, 80}, {1, 1, 1, 3, 66, 256, 128},
                          {1, 4, 2, 1, 150, 24, 40},  {0, 1, 1, 4, 4, 8, 8},     {1, 1, 1, 3, 0, 8, 8},
                          {1, 1, 1, 0, 3, 8, 8},      {1, 1, 1, 5, 70, 512, 257}, {2, 6, 2, 1, 1500, 32, 64},
                          {1, 3, 1, 1, 1030, 5, 12},  {1, 1, 1, 1, 0, 8, 8}};
  int turn = 0;
  for (const float margin : {0.0f, 1.3f, 1000.0f}) {
    for (const Shape& shape : shapes) {
      for (int mask = 0; mask <= 4; mask++, turn++) {
        Case c;
        c.pattern = {1, 1, 0, 0}, c.margin = margin, c.shape = shape, c.mask = static_cast<Mask>(mask), c.isa = isa;
        c.order = static_cast<Order>(turn % 4), c.causal = turn % 2 == 0;
        c.dtype = turn % 5 == 0 ? DYNATTN_BFLOAT16 : turn % 5 == 1 ? DYNATTN_FLOAT16 : DYNATTN_FLOAT32;
        c.threads = 1 + turn % 3, c.scale = turn % 7 == 0 ? -0.25f : 0.25f, c.dropout_p = turn % 6 == 0 ? 0.3 : 0.0;
        c.seed = static_cast<uint64_t>(turn);
        c.trouble = static_cast<Trouble>(turn % 9 < 5 ? turn % 9 : 0);
        if (c.trouble == Trouble::kOverflow && c.dtype == DYNATTN_FLOAT16) c.trouble = Trouble::kNone;  // no 2^100
        c.block_size = turn % 2 == 1 ? sizes[turn / 2 % 4] : 0;
        counts.check(c);
      }
    }
  }
}

// Rows so low, and rows of products so large, that nothing is left of the logarithm of their number of keys.
void check_low(int isa, Counts& counts) {
  constexpr int64_t kAll = int64_t{1} << 40;
  const Pattern patterns[] = {{1, 1, 0, 0}, {1, 2, 0, 0}, {2, 4, 0, 0, 16}, {3, 5, 0, 0}, {1, 2, 5, 3}};
  const Rule rules[] = {{17}, {kAll, 0, 1, 4}, {1, 0, 1, 1, 0.013f}, {1, 0, 1, 1, -1.0f, 0.413f}};
  const Shape shapes[] = {{1, 1, 1, 1, 150, 8, 8}, {1, 4, 2, 9, 70, 20, 36}, {1, 2, 1, 65, 600, 16, 24}};
  int turn = 0;
  for (const Shape& shape : shapes) {
    for (int choice = 0; choice < 10; choice++, turn++) {
      Case c;
      c.pattern = choice < 5 ? patterns[choice] : Pattern{1, 1, 0, 0};
      if (choice >= 5 && choice < 9) c.rule = rules[choice - 5];
      if (choice == 9) c.margin = 1.3f;
      if (choice >= 5 && is_tiled(isa)) continue;
      c.shape = shape, c.mask = Mask::kLow, c.isa = isa, c.threads = 1 + turn % 3;
      c.dtype = turn % 4 == 1 ? DYNATTN_BFLOAT16 : turn % 4 == 3 ? DYNATTN_FLOAT16 : DYNATTN_FLOAT32;
      c.causal = turn % 2 == 0, c.dropout_p = turn % 3 == 0 ? 0.3 : 0.0, c.seed = static_cast<uint64_t>(turn);
      counts.check(c);
    }
  }
}

// Texts of different lengths at once.
void check_texts(int isa, Counts& counts) {
  const Pattern patterns[] = {{1, 1, 0, 0},  {1, 2, 0, 0},     {2, 4, 0, 0},     {3, 5, 0, 0},
                              {1, 2, 40, 3}, {2, 4, 20, 1, 3}, {1, 2, 0, 0, 16}, {7, 31, 0, 0}};
  const int dims[][2] = {{16, 16}, {20, 36}, {64, 64}, {5, 80}};
  const int sizes[] = {16, 0, 48, 160};
  int turn = 0;
  for (const Pattern& pattern : patterns) {
    for (const auto& dim : dims) {
      for (const int size : sizes) {
        const int dtype = turn % 3 == 0 ? DYNATTN_FLOAT32 : turn % 3 == 1 ? DYNATTN_BFLOAT16 : DYNATTN_FLOAT16;
        counts.check(TextsCase{pattern, 4, turn % 2 ? 2 : 4, dim[0], dim[1], size, turn / 2 % 2 == 0, turn % 5 == 0,
                               dtype, isa, 1 + turn % 4});
        turn++;
      }
      turn++;
    }
  }
}

// Linear layers.
void check_linear(int isa, Counts& counts) {
  const int sizes[][2] = {{1, 1}, {3, 17}, {17, 3}, {31, 33}, {63, 65}, {64, 64}, {130, 31}, {255, 257}, {513, 70}, {70, 1030}};
  const int patterns[][2] = {{1, 2}, {2, 4}, {1, 4}, {3, 4}};
  const int percents[] = {100, 0, 10, 50, 90};
  int turn = 0;
  for (const Linear kind : {Linear::kRows, Linear::kOutputs, Linear::kPacked}) {
    for (const auto& size : sizes) {
      for (int tokens = 1; tokens <= DYNATTN_LINEAR_TOKENS; tokens++) {
        for (int types = 0; types < (kind == Linear::kPacked ? 2 : 4); types++, turn++) {
          const int dtype = types % 2 ? DYNATTN_BFLOAT16 : DYNATTN_FLOAT32;
          counts.check(LinearCase{kind, tokens, size[0], size[1], turn % 3, patterns[turn % 4][0], patterns[turn % 4][1],
                                  dtype, types < 2 ? dtype : DYNATTN_INT8, isa, 1 + turn % 3, percents[turn / 2 % 5],
                                  turn % 5 != 0});
        }
      }
    }
  }
  const int groups[][2] = {{1, 2}, {2, 4}, {5, 8}, {8, 16}};
  for (const auto& size : sizes) {
    for (const Linear kind : {Linear::kRows, Linear::kAbove, Linear::kGroups}) {
      for (const int tokens : {3, 9, 40, 200}) {
        const int* const group = groups[++turn % 4];
        counts.check(LinearCase{kind, tokens, size[0], size[1], turn % 3, group[0], group[1], DYNATTN_FLOAT32, DYNATTN_FLOAT32,
                                isa, 1 + turn % 3, percents[turn / 2 % 5], turn % 5 != 0});
      }
    }
  }
}

void check_isa(int isa, Counts& counts) {
  const Pattern patterns[] = {{1, 1, 0, 0},     {1, 2, 0, 0},     {2, 4, 0, 0},     {1, 4, 0, 0},
                              {3, 5, 0, 0},     {7, 31, 0, 0},    {1, 2, 5, 3},     {2, 4, 20, 1},
                              {1, 3, 400, 0},   {2, 4, 0, 70},    {1, 2, 0, 0, 16}, {2, 4, 0, 0, 16},
                              {1, 2, 5, 3, 16}, {2, 4, 20, 1, 3}, {1, 2, 0, 0, 32}, {2, 5, 0, 0, 51}};
  const Shape shapes[] = {{1, 1, 1, 1, 1, 1, 1},      {2, 2, 1, 7, 63, 8, 8},     {1, 4, 2, 65, 111, 20, 36},
                          {1, 1, 1, 130, 64, 64, 64}, {1, 2, 2, 13, 257, 32, 80}, {2, 1, 1, 5, 129, 5, 256},
                          {1, 1, 1, 3, 66, 256, 128}, {1, 4, 2, 1, 150, 24, 40},  {0, 1, 1, 4, 4, 8, 8},
                          {1, 1, 1, 3, 0, 8, 8},      {1, 1, 1, 0, 3, 8, 8},      {1, 2, 1, 200, 190, 16, 24},
                          {1, 1, 1, 7, 66, 257, 512}, {1, 1, 1, 2, 70, 512, 511}};
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
    const Shape few[] = {{1, 2, 2, 1, 2300, 64, 64},
                         {2, 6, 2, 3, 1100, 20, 36},
                         {1, 2, 1, 6, 2049, 16, 80},
                         {1, 2, 1, 7, 2049, 16, 80},
                         {1, 2, 1, 12, 1100, 24, 80},
                         {1, 2, 1, 13, 1100, 24, 80},
                         {1, 65, 1, 1, 70, 8, 8}};
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
    for (const Shape& shape : shapes) {
      for (int i = 0; i < 3; i++, turn++) check_blocks(pattern, shape, isa, turn, counts);
    }
    for (const Shape& shape : few) check_blocks(pattern, shape, isa, turn++, counts);
    for (int trouble = 1; trouble <= 4; trouble++) {
      for (int mask = 0; mask <= 3; mask++) {
        Case c;
        c.pattern = pattern, c.shape = {1, 2, 1, 31, 140, 24, 20}, c.mask = static_cast<Mask>(mask), c.isa = isa;
        c.trouble = static_cast<Trouble>(trouble), c.causal = trouble % 2 == 0, c.aux = mask % 2 == 1;
        c.block_size = mask == 2 ? 24 : 0;
        counts.check(c);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (int isa = 0; isa < static_cast<int>(sizeof kIsaNames / sizeof kIsaNames[0]); isa++) {
    if (argc < 2 || argc > 3 || std::string(argv[1]) != kIsaNames[isa]) continue;
    if (dynattn_isa_refusal(isa) != nullptr) {
      std::printf("%s: %s, skipped\n", argv[1], dynattn_isa_refusal(isa));
      return 0;
    }
    Counts counts;
    const std::string which = argc == 2 ? "all" : argv[2];
    if (which == "all" || which == "few") {
      counts.each = which == "few" ? 17 : 1;  // which divides no number of choices in their loops
      check_isa(isa, counts);
      counts.each = which == "few" ? 3 : 1;
      check_low(isa, counts);
      counts.each = which == "few" ? 17 : 1;
      if (!is_tiled(isa)) check_rows(isa, counts), check_few_rows(isa, counts), check_skips(isa, counts), check_texts(isa, counts), check_linear(isa, counts);
      counts.each = 1;
    }
    if (which == "all" || which == "few" || which == "random") {
      check_random(isa, counts);
    } else {
      counts.check(random_case(isa, std::atoi(which.c_str())));
    }
    std::printf("%s: %d passed, %d failed\n", argv[1], counts.passed, counts.failed);
    return counts.failed > 0 || counts.passed == 0;
  }
  std::fprintf(stderr, "usage: driver portable|avx2|avx512|neon|tiles-portable|avx512bf16|amx [random|few|NUMBER]\n");
  return 2;
}
