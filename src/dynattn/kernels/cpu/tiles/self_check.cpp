// Small problems, forward and backward, computed by one engine and by the portable one.
//
// Queries and keys of attention are small integers, so that scores are exact, ties are many, and every engine has to
// choose the same. Values and weights are not, and round.
#include "tiles/self_check.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include <vector>

namespace dynattn {

namespace {

constexpr int64_t kSteps = 2;

struct Random {
  uint64_t state = 1;

  uint32_t next(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33) % below;
  }
};

float widened(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float x;
  memcpy(&x, &word, sizeof x);
  return x;
}

// A number of few enough bits that bfloat16 holds it.
uint16_t narrowed(float x) {
  uint32_t word;
  memcpy(&word, &x, sizeof word);
  return static_cast<uint16_t>(word >> 16);
}

// `count` integers between -range and range, times `unit`.
std::vector<uint16_t> numbers(Random& random, int64_t count, int range, float unit) {
  std::vector<uint16_t> all(static_cast<size_t>(count));
  for (uint16_t& x : all) {
    const int number = static_cast<int>(random.next(static_cast<uint32_t>(2 * range + 1))) - range;
    x = narrowed(static_cast<float>(number) * unit);
  }
  return all;
}

bool same_number(float a, float b) { return a == b || (a != a && b != b); }

// Products of numbers with exponents from `least` up to `most`, as bfloat16 has them.
bool products_agree(const TileKernels& engine, const TileKernels& portable, uint32_t least, uint32_t most,
                    bool same_bits) {
  Random random;
  std::vector<uint16_t> a(32 * 32 * kSteps), b(a.size());
  for (std::vector<uint16_t>* all : {&a, &b}) {
    for (uint16_t& x : *all) {
      x = static_cast<uint16_t>((least + random.next(most - least + 1)) << 7 | random.next(128) | random.next(2) << 15);
    }
  }
  std::vector<float> sums(32 * 32);
  for (float& x : sums) x = widened(a[random.next(1024)]);
  std::vector<float> got = sums, want = sums;
  engine.multiply(a.data(), b.data(), kSteps, got.data());
  portable.multiply(a.data(), b.data(), kSteps, want.data());
  for (size_t at = 0; at < sums.size(); at++) {
    if (same_bits && !same_number(got[at], want[at])) return false;
    const size_t row = at / 32, column = at % 32;
    double size = fabs(static_cast<double>(sums[at]));  // of all that is added
    for (size_t k = 0; k < 32 * kSteps; k++) {
      const size_t pair = (k / 32 * 2 + column / 16) * 256 + k % 32 / 2 * 16 + column % 16;
      size += fabs(static_cast<double>(widened(a[row * 32 * kSteps + k])) * widened(b[2 * pair + k % 2]));
    }
    if (!same_bits && !(fabs(static_cast<double>(got[at]) - want[at]) <= size * (65 * 0x1p-23))) return false;
  }
  return true;
}

struct Case {
  const char* what;
  int n, m, stride, heads, kv_heads, kv_len, head_dim, value_dim;
  int mask;  // DYNATTN_BOOL, DYNATTN_FLOAT32, or -1 for none
  bool causal;
  int window;
  uint32_t drop_below;
};

constexpr Case kCases[] = {
    {"dense attention", 1, 1, 1, 2, 1, 70, 64, 64, -1, true, 0, 0},
    {"1:2", 1, 2, 1, 1, 1, 40, 20, 33, DYNATTN_BOOL, false, 0, 0},
    {"1:2 with stride 16", 1, 2, 16, 1, 1, 35, 32, 16, -1, true, 0, 0},
    {"2:4", 2, 4, 1, 2, 1, 50, 16, 16, -1, false, 0, 1u << 30},
    {"2:4 with stride 16", 2, 4, 16, 1, 1, 60, 24, 16, DYNATTN_FLOAT32, false, 0, 0},
    {"1:4 with stride 8", 1, 4, 8, 1, 1, 70, 32, 32, -1, true, 0, 0},
    {"2:5 with a window", 2, 5, 3, 1, 1, 33, 32, 15, -1, true, 4, 0},
};

constexpr int64_t kQueryLength = 19;

struct Inputs {
  std::vector<uint16_t> query, key, value, grad_out;
  std::vector<float> bias;
  std::vector<uint8_t> allowed;

  explicit Inputs(const Case& c) {
    Random random;
    query = numbers(random, c.heads * kQueryLength * c.head_dim, 2, 1.0f);
    key = numbers(random, c.kv_heads * c.kv_len * c.head_dim, 2, 1.0f);
    value = numbers(random, c.kv_heads * c.kv_len * c.value_dim, 32, 0x1p-4f);
    grad_out = numbers(random, c.heads * kQueryLength * c.value_dim, 32, 0x1p-4f);
    for (int64_t at = 0; at < kQueryLength * c.kv_len; at++) {
      bias.push_back(static_cast<float>(random.next(5)) - 2.0f);
      allowed.push_back(random.next(3) > 0);
    }
  }
};

constexpr uint16_t kUnwritten = 0x7fc0u;  // NaN

struct Outputs {
  std::vector<uint16_t> out, d_query, d_key, d_value;
  std::vector<float> logsumexp;

  Outputs(const Case& c, const Inputs& inputs)
      : out(static_cast<size_t>(c.heads * kQueryLength * c.value_dim), kUnwritten),
        d_query(inputs.query.size(), kUnwritten),
        d_key(inputs.key.size(), kUnwritten),
        d_value(inputs.value.size(), kUnwritten),
        logsumexp(static_cast<size_t>(c.heads * kQueryLength), NAN) {}
};

NMForwardArgs arguments(const Case& c, const Inputs& inputs, Outputs& outputs) {
  NMForwardArgs args = {};
  args.query = inputs.query.data(), args.key = inputs.key.data(), args.value = inputs.value.data();
  args.out = outputs.out.data(), args.logsumexp = outputs.logsumexp.data();
  args.batch = 1, args.heads = c.heads, args.kv_heads = c.kv_heads;
  args.q_len = kQueryLength, args.kv_len = c.kv_len, args.head_dim = c.head_dim, args.value_dim = c.value_dim;
  args.query_strides[1] = kQueryLength * c.head_dim, args.query_strides[2] = c.head_dim;
  args.key_strides[1] = c.kv_len * c.head_dim, args.key_strides[2] = c.head_dim;
  args.value_strides[1] = c.kv_len * c.value_dim, args.value_strides[2] = c.value_dim;
  args.out_strides[1] = kQueryLength * c.value_dim, args.out_strides[2] = c.value_dim;
  if (c.mask >= 0) {
    args.mask = c.mask == DYNATTN_BOOL ? static_cast<const void*>(inputs.allowed.data()) : inputs.bias.data();
    args.mask_dtype = c.mask, args.mask_strides[2] = c.kv_len, args.mask_strides[3] = 1;
  }
  args.scale = 0.25f, args.dtype = DYNATTN_BFLOAT16, args.n = c.n, args.m = c.m, args.stride = c.stride;
  args.window = c.window, args.causal = c.causal, args.threads = 1, args.seed = 7, args.drop_below = c.drop_below;
  args.keep_factor = static_cast<float>(1.0 / (1.0 - c.drop_below * 0x1p-32));
  return args;
}

// Values are up to 2 in magnitude. Weights round by half a unit of bfloat16's last place in either engine, and so does
// the output; the engines' own vectors may round otherwise before that.
bool outputs_agree(const Outputs& got, const Outputs& want, const NMForwardArgs& args) {
  const double values = 2.0 * args.keep_factor, rounding = args.needs_grad ? 1e-5 : 0x1p-7;
  for (size_t at = 0; at < got.out.size(); at++) {
    if (!(fabs(static_cast<double>(widened(got.out[at])) - widened(want.out[at])) <= values * 0x1p-6)) return false;
  }
  for (size_t at = 0; at < got.logsumexp.size(); at++) {
    if (!(fabs(static_cast<double>(got.logsumexp[at]) - want.logsumexp[at]) <= rounding)) return false;
  }
  return true;
}

bool gradients_agree(const std::vector<uint16_t>& got, const std::vector<uint16_t>& want) {
  double size = 1.0;
  for (uint16_t x : want) size = fmax(size, fabs(static_cast<double>(widened(x))));
  for (size_t at = 0; at < got.size(); at++) {
    if (!(fabs(static_cast<double>(widened(got[at])) - widened(want[at])) <= size * 0x1p-6)) return false;
  }
  return true;
}

NMBackwardArgs backward_arguments(const NMForwardArgs& forward, const Inputs& inputs, Outputs& outputs) {
  NMBackwardArgs args = {};
  args.forward = forward;
  args.grad_out = inputs.grad_out.data(), args.grad_logsumexp = inputs.bias.data();
  args.d_query = outputs.d_query.data(), args.d_key = outputs.d_key.data(), args.d_value = outputs.d_value.data();
  for (int i = 0; i < 3; i++) {
    args.grad_out_strides[i] = forward.out_strides[i], args.d_query_strides[i] = forward.query_strides[i];
    args.d_key_strides[i] = forward.key_strides[i], args.d_value_strides[i] = forward.value_strides[i];
  }
  return args;
}

bool backward_agrees(const TileKernels& engine, const TileKernels& portable, const NMForwardArgs& forward,
                     const NMForwardArgs& same, const Inputs& inputs, Outputs& got, Outputs& want) {
  const NMBackwardArgs here = backward_arguments(forward, inputs, got);
  const NMBackwardArgs there = backward_arguments(same, inputs, want);
  return engine.nm_backward(here) == DYNATTN_OK && portable.nm_backward(there) == DYNATTN_OK &&
         gradients_agree(got.d_query, want.d_query) && gradients_agree(got.d_key, want.d_key) &&
         gradients_agree(got.d_value, want.d_value);
}

bool attention_agrees(const TileKernels& engine, const TileKernels& portable, const Case& c) {
  const Inputs inputs(c);
  for (int32_t needs_grad : {0, 1}) {
    Outputs got(c, inputs), want(c, inputs);
    NMForwardArgs args = arguments(c, inputs, got), same = arguments(c, inputs, want);
    args.needs_grad = same.needs_grad = needs_grad;
    if (engine.nm_forward(args) != DYNATTN_OK || portable.nm_forward(same) != DYNATTN_OK) return false;
    if (!outputs_agree(got, want, args)) return false;
    if (needs_grad && !backward_agrees(engine, portable, args, same, inputs, got, want)) return false;
  }
  return true;
}

}  // namespace

const char* tile_disagreement(const TileKernels& engine, const TileKernels& portable, bool same_bits) {
  if (!products_agree(engine, portable, 120, 134, same_bits)) return "products of ordinary numbers";
  if (same_bits && !products_agree(engine, portable, 0, 191, true)) return "products of numbers of every size";
  if (same_bits && !products_agree(engine, portable, 61, 67, true)) return "products near the least number";
  for (const Case& c : kCases) {
    if (!attention_agrees(engine, portable, c)) return c.what;
  }
  return nullptr;
}

}  // namespace dynattn
