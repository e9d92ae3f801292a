// What the backwards have in common: the calls that their products are, how the keys of a head are cut into tasks, and
// sums of weights where logsumexps are too rough.
#pragma once

#include <stdlib.h>

#include "common/row_sums.h"
#include "common/team.h"
#include "dynattn_cpu.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int64_t kSectionKeys = 512;  // whose packed rows and gradients stay in the second-level cache
constexpr int64_t kBackwardTasks = 8;  // where there are fewer tasks than this, heads are cut into parts

// dO Vᵀ and dS K as forwards have Q Kᵀ and P V: the first takes values for keys, the second keys for values.
static void name_products(const NMBackwardArgs& args, NMForwardArgs& upstream, NMForwardArgs& product) {
  upstream = args.forward;
  upstream.query = args.grad_out;
  upstream.key = args.forward.value;
  upstream.head_dim = args.forward.value_dim;
  upstream.mask = nullptr;
  upstream.scale = 1.0f;
  product = args.forward;
  product.value = args.forward.key;
  product.value_dim = args.forward.head_dim;
  for (int i = 0; i < 3; i++) {
    upstream.query_strides[i] = args.grad_out_strides[i];
    upstream.key_strides[i] = args.forward.value_strides[i];
    product.value_strides[i] = args.forward.key_strides[i];
  }
}

// The sums of a call's rows, where one of its logsumexps is too rough, and else nothing.
class RoughRows {
 public:
  RoughRows() = default;
  ~RoughRows() { free(sums_.origin); }
  RoughRows(const RoughRows&) = delete;
  RoughRows& operator=(const RoughRows&) = delete;

  int32_t find(const NMForwardArgs& forward) {
    const int64_t rows = forward.batch * forward.heads * forward.q_len;
    int64_t row = 0;
    while (row < rows && !is_rough(forward.logsumexp[row], forward.dtype)) row++;
    if (row == rows) return DYNATTN_OK;
    sums_.origin = static_cast<float*>(malloc(2 * static_cast<size_t>(rows) * sizeof(float)));
    if (sums_.origin == nullptr) return DYNATTN_OUT_OF_MEMORY;
    sums_.sum = sums_.origin + rows;
    NMForwardArgs again = forward;
    again.needs_grad = 1, again.drop_below = 0;  // the weights before dropout, as the forward of a gradient makes them
    return sum_rows(again, sums_);
  }
  const RowSums& sums() const { return sums_; }

 private:
  RowSums sums_;
};

DYNATTN_INLINE float grad_logsumexp(const NMBackwardArgs& args, int64_t row) {
  return args.grad_logsumexp == nullptr ? 0.0f : args.grad_logsumexp[row];
}

// How heads are cut, by shapes alone. Keys come in blocks of whatever a kernel takes at once.
struct Cut {
  int64_t heads, heads_per_kv;  // key heads of the batch, and query heads of each
  int64_t section, part;        // blocks of a section, and of a part, which is whole sections
  int64_t parts;                // of a head

  int64_t tasks() const { return heads * parts; }
};

static Cut cut_heads(const NMForwardArgs& args, int64_t blocks, int64_t block_keys) {
  Cut cut = {args.batch * args.kv_heads, args.heads / args.kv_heads, 0, 0, 0};
  if (cut.heads == 0) return cut;
  blocks = larger<int64_t>(blocks, 1);
  cut.section = smaller(blocks, larger<int64_t>(1, kSectionKeys / block_keys));
  const int64_t sections = ceil_div(blocks, cut.section);
  cut.part = ceil_div(sections, smaller(sections, ceil_div(kBackwardTasks, cut.heads))) * cut.section;
  cut.parts = ceil_div(blocks, cut.part);
  return cut;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
