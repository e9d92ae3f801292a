// Outputs one by one, each the product of a row of weights with the inputs, for a few tokens. The row of an output that
// no token wants is not read.
//
// A task is a run of the wanted outputs. Several rows, or tokens, are multiplied at once, so that the processor has enough
// sums to work on; each sum has its own order, whatever is multiplied beside it. A sum that not every token wants is
// computed for all and written where it is wanted.
#pragma once

#include "linear/call.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kTokensAtOnce = 4;

// acc[r][t] += w[r] · x[t], `count` elements from `i` on, at most a vector of them.
template <class Weights, int kRows, int kTokens>
DYNATTN_INLINE void accumulate(const typename Weights::Element* const w[kRows], const float* const* x, int64_t i,
                               int64_t count, Vec acc[kRows][kTokens]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
    const Vec b = count < kWidth ? load_some<Weights>(w[r] + i, count) : Weights::load(w[r] + i);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) acc[r][t] = fmadd(load_any(x[t] + i), b, acc[r][t]);
  }
}

// Rows as they are: weights along the inputs.
template <class Weights>
struct DenseRows {
  using Element = typename Weights::Element;
  const Element* weight;
  int64_t stride, inputs;

  const Element* row(int32_t output) const { return weight + output * stride; }

  // sums[r][t] = Σ_i row of outputs[r] [i] · x[t][i]: even vectors and odd ones apart, so that two sums are under way.
  // Meanwhile the rows of `next` are asked for, which begin where no hardware prefetcher expects them.
  template <int kRows, int kTokens>
  void multiply(const int32_t* outputs, const int32_t* next, const float* const* x, float sums[kRows][kTokens]) const {
    const Element *w[kRows], *ahead[kRows];
    Vec even[kRows][kTokens], odd[kRows][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      w[r] = row(outputs[r]), ahead[r] = row(next[r]);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) even[r][t] = odd[r][t] = zero();
    }
    int64_t i = 0;
    for (; i + 2 * kWidth <= inputs; i += 2 * kWidth) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) __builtin_prefetch(ahead[r] + i);
      accumulate<Weights, kRows, kTokens>(w, x, i, kWidth, even);
      accumulate<Weights, kRows, kTokens>(w, x, i + kWidth, kWidth, odd);
    }
    if (i < inputs) accumulate<Weights, kRows, kTokens>(w, x, i, smaller<int64_t>(kWidth, inputs - i), even);
    if (i + kWidth < inputs) accumulate<Weights, kRows, kTokens>(w, x, i + kWidth, inputs - i - kWidth, odd);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) sums[r][t] = reduce_add(add(even[r][t], odd[r][t]));
    }
  }
};

template <class Rows>
struct OutputsJob {
  const LinearArgs* args;
  Rows rows;
  const float* x[DYNATTN_LINEAR_TOKENS];  // as `rows` multiplies them
  int32_t* outputs;                       // those that some token wants, in order
  int64_t count, per_task;
  int64_t next;
};

// The products of kRows outputs with kTokens tokens from `token` on.
template <int kRows, int kTokens, class Rows>
static void run_products(const OutputsJob<Rows>& job, const int32_t* outputs, const int32_t* next, int64_t token) {
  const LinearArgs& args = *job.args;
  float sums[kRows][kTokens], other;
  job.rows.template multiply<kRows, kTokens>(outputs, next, job.x + token, sums);
  for (int r = 0; r < kRows; r++) {
    for (int t = 0; t < kTokens; t++) {
      if (args.keep != nullptr && args.keep[(token + t) * args.outputs + outputs[r]] == 0) continue;
      write_outputs(args, token + t, outputs[r], 1, &sums[r][t], &other);
    }
  }
}

// One output for all tokens; the row is in the first-level cache after the first few.
template <class Rows>
static void run_tokens(const OutputsJob<Rows>& job, const int32_t* output, const int32_t* next) {
  int64_t token = 0;
  for (; token + kTokensAtOnce <= job.args->tokens; token += kTokensAtOnce) {
    run_products<1, kTokensAtOnce>(job, output, next, token);
  }
  const int64_t left = job.args->tokens - token;
  if (left == 3) run_products<1, 3>(job, output, next, token);
  if (left == 2) run_products<1, 2>(job, output, next, token);
  if (left == 1) run_products<1, 1>(job, output, next, token);
}

template <class Rows>
static void run_outputs(const OutputsJob<Rows>& job, const int32_t* outputs, int64_t count) {
  int64_t k = 0;
  const auto next = [&](int rows) { return outputs + (k + 2 * rows <= count ? k + rows : k); };
  for (; job.args->tokens == 1 && k + 4 <= count; k += 4) run_products<4, 1>(job, outputs + k, next(4), 0);
  for (; job.args->tokens == 2 && k + 2 <= count; k += 2) run_products<2, 2>(job, outputs + k, next(2), 0);
  for (; k < count; k++) run_tokens(job, outputs + k, next(1));
}

template <class Rows>
static void work_outputs(void* data) {
  OutputsJob<Rows>& job = *static_cast<OutputsJob<Rows>*>(data);
  for (int64_t at = increment(job.next) * job.per_task; at < job.count; at = increment(job.next) * job.per_task) {
    run_outputs(job, job.outputs + at, smaller(job.per_task, job.count - at));
  }
}

// The outputs that some token wants.
static int64_t list_wanted(const LinearArgs& args, int32_t* outputs) {
  int64_t count = 0;
  for (int64_t j = 0; j < args.outputs; j++) {
    bool wanted = args.keep == nullptr;
    for (int64_t token = 0; token < args.tokens && !wanted; token++) wanted = args.keep[token * args.outputs + j] != 0;
    outputs[count] = static_cast<int32_t>(j);
    count += wanted;
  }
  return count;
}

// The products with all wanted rows. `prepare` writes a token's inputs, `width` floats, as the rows multiply them.
template <class Rows, class Prepare>
static int32_t run_rows_of_outputs(const LinearArgs& args, const Rows& rows, int64_t width, int64_t weights_per_row,
                                   Prepare prepare) {
  OutputsJob<Rows> job = {};
  job.args = &args, job.rows = rows;
  Arena sizes = {0, 0};
  sizes.take<int32_t>(args.outputs + 1);
  sizes.take<float>(args.tokens * width);
  void* const memory = take_workspace(static_cast<size_t>(sizes.used));
  if (memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  Arena arena = {reinterpret_cast<uintptr_t>(memory), 0};
  job.outputs = arena.take<int32_t>(args.outputs + 1);
  float* const x = arena.take<float>(args.tokens * width);
  for (int64_t token = 0; token < args.tokens; token++) {
    prepare(token, x + token * width);
    job.x[token] = x + token * width;
  }
  job.count = list_wanted(args, job.outputs);
  constexpr int64_t kRowsAtOnce = 4, kTasksPerThread = 4;
  const int threads = reading_threads(args, job.count * weights_per_row, ceil_div(job.count, kRowsAtOnce));
  job.per_task = round_up(ceil_div(larger<int64_t>(job.count, 1), threads * kTasksPerThread), kRowsAtOnce);
  run_team(args.parallel, threads, work_outputs<Rows>, &job);
  return_workspace(memory);
  return DYNATTN_OK;
}

template <class Weights>
static int32_t run_dense_outputs(const LinearArgs& args) {
  using Element = typename Weights::Element;
  memset(args.out, 0, static_cast<size_t>(args.tokens * args.outputs * element_size(args.dtype)));
  const DenseRows<Weights> rows = {static_cast<const Element*>(args.weight), args.weight_stride, args.inputs};
  const int64_t width = round_up(args.inputs, kWidth);
  return run_rows_of_outputs(args, rows, width, args.inputs, [&](int64_t token, float* to) {
    for (int64_t i = 0; i < width; i++) to[i] = i < args.inputs ? input_of(args, token, i) : 0.0f;
  });
}

}  // namespace dynattn::DYNATTN_NAMESPACE
