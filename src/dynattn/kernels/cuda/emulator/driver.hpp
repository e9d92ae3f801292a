// What Python calls: one shared library a variant, with these functions and its own emulator_run().
#pragma once

#include "../backward_params.cuh"
#include "hopper.hpp"

namespace emulator {

inline std::string last_error;

inline int element_bytes = 2;

// Where a tensor [batch, heads, rows, columns] lies.
inline Range range_of(const void* base, const long long (&strides)[3], int batch, int heads, int rows, int columns) {
  const auto begin = reinterpret_cast<uintptr_t>(base);
  if (batch == 0 || heads == 0 || rows == 0) return {begin, begin};
  return {begin, begin + element_bytes * ((batch - 1) * strides[0] + (heads - 1) * strides[1] + (rows - 1) * strides[2] + columns)};
}

// Runs a one-dimensional grid; 1, with last_error set, where a block cannot run to its end.
template <class Body>
int run_grid(long long blocks, int threads, size_t shared_bytes, Schedule schedule, Body body) {
  struct Release {
    ~Release() { release_block(); }
  } at_the_end;
  counts = {};
  for (long long i = 0; i < blocks; ++i) {
    blockIdx = {static_cast<unsigned>(i), 0, 0};
    reset_hopper();
    const auto enter = [](int thread) { threadIdx = {static_cast<unsigned>(thread), 0, 0}; };
    if (!run_block(threads, shared_bytes, schedule, body, enter)) {
      last_error = "block " + std::to_string(i) + ", " + block.error;
      return 1;
    }
  }
  return 0;
}

// What the asynchronous copies of an attention kernel may read: keys and values, and in the backward also queries and the
// output's gradient.
inline std::vector<Range> copied(const dynattn::ForwardParams& p) {
  return {range_of(p.key, p.key_strides, p.batch, p.kv_heads, p.kv_len, p.head_dim),
          range_of(p.value, p.value_strides, p.batch, p.kv_heads, p.kv_len, p.value_dim)};
}
inline std::vector<Range> copied(const dynattn::BackwardParams& p) {
  const dynattn::ForwardParams& f = p.forward;
  std::vector<Range> ranges = copied(f);
  ranges.push_back(range_of(f.query, f.query_strides, f.batch, f.heads, f.q_len, f.head_dim));
  ranges.push_back(range_of(p.grad_out, p.grad_out_strides, f.batch, f.heads, f.q_len, f.value_dim));
  return ranges;
}

template <class Params, class Body>
int launch(const Params& p, long long blocks, int threads, long long shared_bytes, int reversed, int eager, Body body) {
  readable = copied(p);
  return run_grid(blocks, threads, shared_bytes, {reversed != 0, eager != 0}, body);
}

}  // namespace emulator

extern "C" {
inline __attribute__((used)) const char* emulator_error() { return emulator::last_error.c_str(); }
inline __attribute__((used)) void emulator_counts(emulator::Counts* counts) { *counts = emulator::counts; }
}
