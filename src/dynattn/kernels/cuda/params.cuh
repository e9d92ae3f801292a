// What a launch of an N:M attention kernel is told: pointers, strides, lengths, flags. Plain data without a header, so
// that NVRTC, nvcc and g++ (the emulator) see the same bytes; the loader mirrors it field by field with ctypes.
#pragma once

namespace dynattn {

// A logsumexp in two numbers: e^logsumexp is the weight of a score `origin`, times `sum`.
struct alignas(8) RowSum {
  float origin;  // as the kernel has scores: not scaled where no bias is added
  float sum;     // of the kept weights relative to it
};

// Strides count elements. The last dimension of query, key, value and out is contiguous; their rows start at multiples
// of 16 bytes (pointer and strides), because tiles are copied in 16-byte pieces. The mask's strides are free, 0 included.
struct ForwardParams {
  const void* query;  // [batch, heads, q_len, head_dim]
  const void* key;    // [batch, kv_heads, kv_len, head_dim]
  const void* value;  // [batch, kv_heads, kv_len, value_dim]
  const void* mask;   // [batch, heads, q_len, kv_len] seen through its strides; its type is the variant's
  void* out;          // [batch, heads, q_len, value_dim]
  float* logsumexp;   // [batch, heads, q_len], contiguous, as are the next three
  float* kept_mass;   // these three are written by variants with aux and may be null for the others
  int* kept;
  int* allowed;
  const long long* seed;  // the seed of dropout; variants with dropout read it, and dropout's two numbers below
  RowSum* row_sums;  // [batch, heads, q_len]; or null, as in a forward: row_sums.cuh says what a launch with it does

  long long query_strides[3];  // batch, head, row
  long long key_strides[3];
  long long value_strides[3];
  long long out_strides[3];
  long long mask_strides[4];  // batch, head, query, key

  int batch, heads, kv_heads;
  int q_len, kv_len;
  int head_dim, value_dim;  // multiples of 8, at most the variant's head_dim; columns above them count as 0
  int window, sinks;        // read by variants with a band only
  int causal;               // key j is allowed for query i when j <= i + kv_len - q_len
  float scale;              // finite, not 0
  unsigned drop_below;      // the probability that a kept weight is dropped, times 2^32
  float keep_factor;        // multiplies the weights that are not dropped
  // where these tensors begin among those of a call that runs in parts: dropout draws by batch and head of the whole
  int first_batch, first_head;
};

}  // namespace dynattn
