// Linear layers against naive sums. All numbers are small integers, so that sums are exact and have one
// right answer to the bit. Buffers are heap blocks of exactly their elements; rows of weights that no token asks for are
// NaN, and so are inputs that a token leaves out.
#pragma once

#include <algorithm>
#include <string>

#include "problem.h"

namespace driver {

enum class Linear { kRows, kOutputs, kPacked, kAbove, kGroups };  // the last two are rows that the kernel chooses itself

struct LinearCase {
  Linear kind;
  int tokens, inputs, outputs;
  int gap;  // elements between rows of weights
  int n, m;
  int dtype, weight_dtype, isa, threads, keep_percent;
  bool bias;
};

struct Numbers {
  int dtype;
  std::unique_ptr<unsigned char[]> data;

  Numbers(size_t count, int type) : dtype(type), data(new unsigned char[count * size()]) {}
  size_t size() const { return dtype == DYNATTN_FLOAT32 ? 4 : dtype == DYNATTN_INT8 ? 1 : 2; }
  void set(size_t at, float x) {
    if (dtype == DYNATTN_FLOAT32) {
      std::memcpy(&data[at * 4], &x, 4);
    } else if (dtype == DYNATTN_INT8) {
      data[at] = static_cast<unsigned char>(static_cast<signed char>(x));
    } else {
      const unsigned short half = to_half(x, dtype);
      std::memcpy(&data[at * 2], &half, 2);
    }
  }
  double get(size_t at) const {
    if (dtype == DYNATTN_INT8) return static_cast<signed char>(data[at]);
    float x;
    unsigned short half;
    if (dtype == DYNATTN_FLOAT32) {
      std::memcpy(&x, &data[at * 4], 4);
      return x;
    }
    std::memcpy(&half, &data[at * 2], 2);
    return from_half(half, dtype);
  }
};

struct LinearProblem {
  LinearCase c;
  size_t inputs, outputs, tokens, stride, blocks;
  Numbers x, bias, out, weight;
  std::vector<double> dense;  // [outputs][inputs]
  std::vector<float> scale;
  std::vector<uint8_t> keep;
  std::vector<float> thresholds, factors;
  std::vector<uint32_t> places;

  explicit LinearProblem(const LinearCase& given)
      : c(given), inputs(static_cast<size_t>(c.inputs)), outputs(static_cast<size_t>(c.outputs)),
        tokens(static_cast<size_t>(c.tokens)),
        stride((by_rows() ? outputs : inputs) + static_cast<size_t>(c.gap)),
        blocks((inputs + static_cast<size_t>(16 * c.m) - 1) / static_cast<size_t>(16 * c.m)),
        x(tokens * inputs, c.dtype), bias(outputs, c.dtype), out(tokens * outputs, c.dtype),
        weight(c.kind == Linear::kPacked ? outputs * blocks * static_cast<size_t>(c.n) * 16
                                         : ((by_rows() ? inputs : outputs) - 1) * stride + (by_rows() ? outputs : inputs),
               c.weight_dtype),
        dense(outputs * inputs) {
    for (size_t i = 0; i < tokens * inputs; i++) x.set(i, static_cast<float>(random_int(-3, 3)));
    for (size_t j = 0; j < outputs; j++) bias.set(j, static_cast<float>(random_int(-3, 3)));
    for (double& w : dense) w = random_int(-3, 3);
    for (size_t j = 0; j < outputs; j++) scale.push_back(static_cast<float>(1 << random_int(0, 3)) / 4.0f);
    const size_t kept = by_rows() ? inputs : c.kind == Linear::kOutputs ? outputs : 0;
    for (size_t i = 0; i < tokens * kept; i++) keep.push_back(random_int(1, 100) <= c.keep_percent);
    for (size_t i = 0; i < inputs; i++) factors.push_back(static_cast<float>(random_int(0, 2)));
    for (size_t i = 0; i < (c.gap == 0 ? 1 : inputs); i++) thresholds.push_back(static_cast<float>(random_int(-1, 3)));
    if (c.kind == Linear::kAbove || c.kind == Linear::kGroups) choose();
    c.kind == Linear::kPacked ? pack() : fill(kept);
  }

  bool by_rows() const { return c.kind != Linear::kOutputs && c.kind != Linear::kPacked; }

  // What the kernel must choose by itself, in place of `keep`.
  void choose() {
    const size_t m = static_cast<size_t>(c.m);
    const auto score = [&](size_t t, size_t i) {
      return std::fabs(x.get(t * inputs + i)) * (c.kind == Linear::kGroups && c.bias ? static_cast<double>(factors[i]) : 1.0);
    };
    for (size_t t = 0; t < tokens; t++) {
      for (size_t i = 0; i < inputs; i++) {
        int beaten = 0;
        const size_t first = i / m * m;
        for (size_t j = first; j < std::min(first + m, inputs); j++) {
          beaten += score(t, j) > score(t, i) || (score(t, j) == score(t, i) && j < i);
        }
        const bool above = score(t, i) > static_cast<double>(thresholds[c.gap == 0 ? 0 : i]);
        keep[t * inputs + i] = c.kind == Linear::kAbove ? above : beaten < c.n;
      }
    }
  }

  void fill(size_t rows) {
    const size_t columns = by_rows() ? outputs : inputs;
    for (size_t row = 0; row < rows; row++) {
      bool asked = c.weight_dtype == DYNATTN_INT8;
      for (size_t t = 0; t < tokens; t++) asked |= keep[t * rows + row] != 0;
      for (size_t k = 0; k < columns; k++) {
        const double w = by_rows() ? dense[k * inputs + row] : dense[row * inputs + k];
        weight.set(row * stride + k, asked ? static_cast<float>(w) : NAN);
      }
    }
    if (c.kind != Linear::kRows) return;
    for (size_t i = 0; i < tokens * inputs; i++) {
      if (keep[i] == 0) x.set(i, NAN);
    }
  }

  // The first n inputs of a group from a random one on, cyclically, have weights.
  void pack() {
    const size_t n = static_cast<size_t>(c.n), m = static_cast<size_t>(c.m), planes = m / 2;
    const size_t words = (blocks * n * planes + 1) / 2;  // of a row
    places.assign(outputs * words, 0);
    for (size_t j = 0; j < outputs; j++) {
      for (size_t group = 0; group < blocks * 16; group++) {
        const size_t from = static_cast<size_t>(random_int(0, c.m - 1));
        size_t slot = 0;
        for (size_t member = 0; member < m; member++) {
          const size_t input = group * m + member;
          const bool has = (member + m - from) % m < n;
          if (!has && input < inputs) dense[j * inputs + input] = 0;
          if (!has) continue;
          const size_t row = (j * blocks + group / 16) * n + slot++;
          weight.set(row * 16 + group % 16, input < inputs ? static_cast<float>(dense[j * inputs + input]) : 0.0f);
          for (size_t plane = 0; plane < planes; plane++) {
            const size_t line = (row - j * blocks * n) * planes + plane;
            if (member >> plane & 1) places[j * words + line / 2] |= 1u << (line % 2 * 16 + group % 16);
          }
        }
      }
    }
  }

  double want(size_t t, size_t j) const {
    if (c.kind == Linear::kOutputs && keep[t * outputs + j] == 0) return 0.0;
    double sum = 0;
    for (size_t i = 0; i < inputs; i++) {
      if (!by_rows() || keep[t * inputs + i] != 0) sum += x.get(t * inputs + i) * dense[j * inputs + i];
    }
    if (c.weight_dtype == DYNATTN_INT8) sum *= static_cast<double>(scale[j]);
    return c.bias ? sum + bias.get(j) : sum;
  }

  // Tokens from `first` on.
  int32_t run(size_t first, size_t count, int threads) {
    std::memset(out.data.get() + first * outputs * out.size(), 0xff, count * outputs * out.size());
    LinearArgs args = {};
    const size_t kept = by_rows() ? inputs : outputs;
    args.x = x.data.get() + first * inputs * x.size(), args.weight = weight.data.get();
    args.out = out.data.get() + first * outputs * out.size();
    args.bias = c.bias ? bias.data.get() : nullptr;
    args.scale = c.weight_dtype == DYNATTN_INT8 ? scale.data() : nullptr;
    const bool masked = c.kind == Linear::kRows || c.kind == Linear::kOutputs;
    args.keep = masked ? keep.data() + first * kept : nullptr;
    args.thresholds = c.kind == Linear::kAbove ? thresholds.data() : nullptr, args.threshold_stride = c.gap == 0 ? 0 : 1;
    args.factors = c.kind == Linear::kGroups && c.bias ? factors.data() : nullptr;
    args.places = c.kind == Linear::kPacked ? places.data() : nullptr;
    args.tokens = static_cast<int64_t>(count), args.inputs = c.inputs, args.outputs = c.outputs;
    args.weight_stride = static_cast<int64_t>(stride);
    args.dtype = c.dtype, args.weight_dtype = c.weight_dtype, args.isa = c.isa, args.threads = threads;
    if (c.kind == Linear::kPacked || c.kind == Linear::kGroups) args.n = c.n, args.m = c.m;
    return by_rows()                    ? dynattn_linear_rows(&args)
           : c.kind == Linear::kOutputs ? dynattn_linear_outputs(&args)
                                        : dynattn_linear_nm_weight(&args);
  }
};

// What differs, or nothing.
inline std::string run_linear(const LinearCase& c) {
  LinearProblem p(c);
  const int32_t status = p.run(0, p.tokens, c.threads);
  if (status != DYNATTN_OK) return "status " + std::to_string(status);
  for (size_t t = 0; t < p.tokens; t++) {
    for (size_t j = 0; j < p.outputs; j++) {
      const double got = p.out.get(t * p.outputs + j), want = p.want(t, j);
      const double rounding = c.dtype == DYNATTN_FLOAT32 ? 0.0 : std::fabs(want) * 0x1p-8;  // half a unit of 8 bits
      if (std::fabs(got - want) <= rounding) continue;
      return "token " + std::to_string(t) + ", output " + std::to_string(j) + ": got " + std::to_string(got) +
             ", want " + std::to_string(want);
    }
  }
  if (p.tokens > DYNATTN_LINEAR_TOKENS) return "";  // a token alone is summed in another order
  const std::vector<unsigned char> together(p.out.data.get(), p.out.data.get() + p.tokens * p.outputs * p.out.size());
  for (size_t t = 0; t < p.tokens; t++) {
    if (p.run(t, 1, 1) != DYNATTN_OK) return "a token alone is refused";
  }
  if (std::memcmp(together.data(), p.out.data.get(), together.size()) != 0) return "a token alone has other bits";
  return "";
}

}  // namespace driver
