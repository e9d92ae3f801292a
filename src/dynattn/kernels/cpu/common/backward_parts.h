// What the backwards have in common: the calls that their products are, and how the keys of a head are cut into tasks.
#pragma once

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
