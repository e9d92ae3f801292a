// Before and after the backward's main kernel: the terms of each query's row, and the gradient of the query.
#include "backward_params.cuh"
#include "row_sums.cuh"

namespace dynattn {

constexpr int ROWS_THREADS = 128;

struct alignas(16) EightElements {
  u32 words[4];
};
struct alignas(16) FourFloats {
  float x[4];
};

// What makes weights of a row's scores: relative to its logsumexp, or to the two numbers that stand for it.
DYNATTN_DEVICE RowTerms row_terms(const ForwardParams& f, long long row, float product) {
  const float logsumexp = f.logsumexp[row];
  if (logsumexp == -INFINITY_F) return {0.0f, INFINITY_F, product};
  if (!is_rough(logsumexp)) return {0.0f, logsumexp * LOG2_E, product};
  const RowSum sum = f.row_sums[row];
  return {sum.origin, log2_fast(sum.sum), product};
}

// row_terms, with Σ dO · O by 8 threads a row.
template <class Element>
__global__ void __launch_bounds__(ROWS_THREADS) nm_backward_row_terms(const BackwardParams p) {
  using Raw = unsigned short;
  constexpr int ROW_LANES = 8;
  const ForwardParams& f = p.forward;
  const long long row = static_cast<long long>(blockIdx.x) * (ROWS_THREADS / ROW_LANES) + threadIdx.x / ROW_LANES;
  const bool valid = row < static_cast<long long>(f.batch) * f.heads * f.q_len;
  float sum = 0.0f;
  if (valid) {
    const int query = static_cast<int>(row % f.q_len), pair = static_cast<int>(row / f.q_len);
    const int batch = pair / f.heads, head = pair % f.heads;
    const Raw* out = rows_of(static_cast<const Raw*>(f.out), f.out_strides, batch, head) + query * f.out_strides[2];
    const Raw* grad = rows_of(static_cast<const Raw*>(p.grad_out), p.grad_out_strides, batch, head) +
                      query * p.grad_out_strides[2];
    for (int column = 8 * (threadIdx.x % ROW_LANES); column < f.value_dim; column += 8 * ROW_LANES) {
      const auto a = *reinterpret_cast<const EightElements*>(out + column);
      const auto b = *reinterpret_cast<const EightElements*>(grad + column);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int shift = 16 * (i & 1);
        sum += Element::value(static_cast<Raw>(a.words[i >> 1] >> shift)) *
               Element::value(static_cast<Raw>(b.words[i >> 1] >> shift));
      }
    }
  }
#pragma unroll
  for (int step = 1; step < ROW_LANES; step *= 2) sum += shuffle_xor(sum, step);
  if (valid && threadIdx.x % ROW_LANES == 0) p.row_terms[row] = row_terms(f, row, sum - p.grad_logsumexp[row]);
}

// d_query = query_scale · the sum over all splits, a warp for 16 queries and 8 columns, laid out as accumulators are.
template <class Element>
__global__ void __launch_bounds__(ROWS_THREADS) nm_backward_query(const BackwardParams p) {
  const ForwardParams& f = p.forward;
  const int lane = threadIdx.x % 32, row_blocks = (f.q_len + 15) / 16, across = p.sum_columns / 8;
  const long long fragments = static_cast<long long>(f.batch) * f.heads * row_blocks * across;
  const long long fragment = static_cast<long long>(blockIdx.x) * (ROWS_THREADS / 32) + threadIdx.x / 32;
  if (fragment >= fragments) return;
  const int column = static_cast<int>(fragment % across) * 8 + 2 * (lane & 3);
  const long long block = fragment / across;
  const int query = static_cast<int>(block % row_blocks) * 16 + (lane >> 2), pair = static_cast<int>(block / row_blocks);
  if (column >= f.head_dim) return;
  float sum[4] = {};
  for (int split = 0; split < p.splits; ++split) {
    const auto part = reinterpret_cast<const FourFloats*>(p.query_sums)[(split * fragments + fragment) * 32 + lane];
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += part.x[i];
  }
  unsigned short* out = rows_of(static_cast<unsigned short*>(p.d_query), p.d_query_strides, pair / f.heads,
                                pair % f.heads) + column;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    if (query + 8 * row >= f.q_len) continue;
    *reinterpret_cast<u32*>(out + (query + 8 * row) * p.d_query_strides[2]) =
        Element::pack(sum[2 * row] * p.query_scale, sum[2 * row + 1] * p.query_scale);
  }
}

}  // namespace dynattn
