// What the backward's kernels are told besides what the forward was told. Plain data, mirrored by launch_backward.py.
#pragma once

#include "params.cuh"

namespace dynattn {

// What a row's scores become weights and gradients by: P = 2^((s - origin) · factor - shift), dS = P (dP - product).
struct alignas(16) RowTerms {
  float origin, shift;  // the shift is +inf where nothing is kept: then all weights are 0
  float product;        // Σ dO · O - grad_logsumexp
};

// Gradients have the layout rules of their tensors: contiguous last dimension, rows of d_query, d_key and d_value at
// multiples of 4 bytes, those of grad_out at multiples of 16.
struct BackwardParams {
  ForwardParams forward;  // `out`, `logsumexp`, `row_sums` are read; the scale is positive (a negative one is in the query)

  const void* grad_out;          // [batch, heads, q_len, value_dim]
  const float* grad_logsumexp;   // [batch, heads, q_len], contiguous
  RowTerms* row_terms;           // [batch, heads, q_len]
  float* query_sums;             // zeros; [splits, batch, heads, blocks of 16 queries, sum_columns / 8, 32 lanes, 4]
  void* d_query;                 // as query, key and value
  void* d_key;
  void* d_value;
  float* d_mask;                 // zeros, [batch, heads, q_len, kv_len], contiguous; or null; biases only

  long long grad_out_strides[3];  // batch, head, row
  long long d_query_strides[3];
  long long d_key_strides[3];
  long long d_value_strides[3];

  int splits;         // blocks that share the keys of one head; each has sums of its own for the query's gradient
  int sum_columns;    // the columns of query_sums: the main kernel's HEAD_DIM
  float query_scale;  // d query = query_scale · dS K: the scale with its sign
};

}  // namespace dynattn
