// Texts of different lengths at once, against each text alone, to the bit: packed, and in pages. Pools, tables and
// outputs are heap blocks of exactly their elements; what no key lies in is NaN, and table entries that no key needs
// are far outside.
#pragma once

#include <algorithm>
#include <string>

#include "problem.h"

namespace driver {

struct TextsCase {
  Pattern pattern;
  int heads, kv_heads, head_dim, value_dim;
  int page_size;  // 0: packed, without pages
  bool causal, aux;
  int dtype, isa, threads;
};

struct TextsProblem {
  TextsCase c;
  std::vector<int64_t> query_start = {0}, key_start, key_count;
  int64_t keys = 0, pages = 0, width = 0;
  std::unique_ptr<Tensor> query, key, value, packed_key, packed_value, out;  // key and value: the pool, or packed
  std::vector<int32_t> table;

  explicit TextsProblem(const TextsCase& given) : c(given) {
    const int q_lengths[] = {1, 37, 0, 6, 130, 7, 13, 2}, k_lengths[] = {530, 90, 5, 0, 133, 17, 1, 64};
    int total = 0;
    for (int t = 0; t < 8; t++) {
      total += q_lengths[t];
      query_start.push_back(total), key_start.push_back(keys), key_count.push_back(k_lengths[t]);
      keys += k_lengths[t];
    }
    const int all = static_cast<int>(keys);
    const Shape one = {1, c.heads, c.kv_heads, total, all, c.head_dim, c.value_dim};
    query.reset(new Tensor(one, c.heads, total, c.head_dim, c.dtype, Order::kLengthFirst));
    out.reset(new Tensor(one, c.heads, total, c.value_dim, c.dtype, Order::kLengthFirst));
    packed_key.reset(new Tensor(one, c.kv_heads, all, c.head_dim, c.dtype, Order::kLengthFirst));
    packed_value.reset(new Tensor(one, c.kv_heads, all, c.value_dim, c.dtype, Order::kLengthFirst));
    for (Tensor* x : {query.get(), packed_key.get(), packed_value.get()}) {
      for (size_t i = 0; i < x->count; i++) x->set(static_cast<int64_t>(i), static_cast<float>(random_int(-8, 8)) / 4.0f);
    }
    if (c.page_size > 0) fill_pages();
  }

  void fill_pages() {
    for (int64_t count : key_count) width = std::max(width, (count + c.page_size - 1) / c.page_size);
    for (int64_t count : key_count) pages += (count + c.page_size - 1) / c.page_size;
    table.assign(key_count.size() * static_cast<size_t>(width), 1 << 30);
    const Shape pool = {static_cast<int>(pages), c.kv_heads, c.kv_heads, 1, c.page_size, c.head_dim, c.value_dim};
    const Order order = c.page_size == 16 ? Order::kLengthFirst : Order::kGaps;
    key.reset(new Tensor(pool, c.kv_heads, c.page_size, c.head_dim, c.dtype, order));
    value.reset(new Tensor(pool, c.kv_heads, c.page_size, c.value_dim, c.dtype, order));
    for (Tensor* x : {key.get(), value.get()}) {
      for (size_t i = 0; i < x->count; i++) x->set(static_cast<int64_t>(i), NAN);
    }
    int64_t taken = 0;
    for (size_t t = 0; t < key_count.size(); t++) {
      for (int64_t j = 0; j < key_count[t]; j++) {
        int32_t& page = table[t * static_cast<size_t>(width) + static_cast<size_t>(j / c.page_size)];
        if (j % c.page_size == 0) page = static_cast<int32_t>((taken++ * 7 + 3) % pages);
        copy(*packed_key, key_start[t] + j, *key, page, j % c.page_size, c.head_dim);
        copy(*packed_value, key_start[t] + j, *value, page, j % c.page_size, c.value_dim);
      }
    }
  }

  void copy(const Tensor& from, int64_t row, Tensor& to, int32_t page, int64_t place, int dim) {
    for (int h = 0; h < c.kv_heads; h++) {
      for (int d = 0; d < dim; d++) {
        to.set(to.at(page, h, static_cast<int>(place)) + d,
               static_cast<float>(from.get(from.at(0, h, static_cast<int>(row)) + d)));
      }
    }
  }

  NMTextsArgs arguments() const {
    const bool paged = c.page_size > 0;
    const Tensor &k = paged ? *key : *packed_key, &v = paged ? *value : *packed_value;
    NMTextsArgs args = {};
    NMForwardArgs& call = args.call;
    call.query = query->data.get(), call.key = k.data.get(), call.value = v.data.get(), call.out = out->data.get();
    for (int i = 0; i < 3; i++) {
      call.query_strides[i] = query->strides[i], call.out_strides[i] = out->strides[i];
      call.key_strides[i] = k.strides[i], call.value_strides[i] = v.strides[i];
    }
    call.batch = 1, call.heads = c.heads, call.kv_heads = c.kv_heads, call.q_len = query_start.back();
    call.kv_len = paged ? c.page_size : keys, call.head_dim = c.head_dim, call.value_dim = c.value_dim;
    call.scale = 0.25f, call.dtype = c.dtype, call.n = c.pattern.n, call.m = c.pattern.m;
    call.window = c.pattern.window, call.sinks = c.pattern.sinks, call.stride = c.pattern.stride;
    call.causal = c.causal, call.isa = c.isa, call.threads = c.threads, call.keep_factor = 1.0f;
    args.query_start = query_start.data(), args.key_start = paged ? nullptr : key_start.data();
    args.key_count = key_count.data(), args.texts = static_cast<int64_t>(key_count.size());
    if (paged) args.block_table = table.data();
    args.table_width = width, args.pages = pages, args.page_size = c.page_size;
    return args;
  }

  // A text by itself, from the packed keys.
  NMForwardArgs alone(size_t t) const {
    NMForwardArgs call = arguments().call;
    const size_t size = query->size();
    call.q_len = query_start[t + 1] - query_start[t], call.kv_len = key_count[t];
    call.query = query->data.get() + static_cast<size_t>(query_start[t] * query->strides[2]) * size;
    call.key = packed_key->data.get() + static_cast<size_t>(key_start[t] * packed_key->strides[2]) * size;
    call.value = packed_value->data.get() + static_cast<size_t>(key_start[t] * packed_value->strides[2]) * size;
    call.out = out->data.get() + static_cast<size_t>(query_start[t] * out->strides[2]) * size;
    for (int i = 0; i < 3; i++) {
      call.key_strides[i] = packed_key->strides[i], call.value_strides[i] = packed_value->strides[i];
    }
    return call;
  }
};

// A text's certificate begins at its first query times the heads.
struct Certificate {
  std::vector<float> logsumexp, kept_mass;
  std::vector<int32_t> kept, allowed;

  explicit Certificate(size_t rows) : logsumexp(rows, -7.0f), kept_mass(rows, -7.0f), kept(rows, -7), allowed(rows, -7) {}

  void give(NMForwardArgs& call, size_t at) {
    call.logsumexp = logsumexp.data() + at, call.kept_mass = kept_mass.data() + at;
    call.kept = kept.data() + at, call.allowed = allowed.data() + at;
  }
  bool operator==(const Certificate& other) const {
    return std::memcmp(logsumexp.data(), other.logsumexp.data(), logsumexp.size() * sizeof(float)) == 0 &&
           std::memcmp(kept_mass.data(), other.kept_mass.data(), kept_mass.size() * sizeof(float)) == 0 &&
           kept == other.kept && allowed == other.allowed;
  }
};

// What differs, or nothing.
inline std::string run_texts(const TextsCase& c) {
  TextsProblem p(c);
  const size_t bytes = p.out->count * p.out->size(), rows = static_cast<size_t>(p.query_start.back() * c.heads);
  Certificate together(rows), apart(rows);
  std::memset(p.out->data.get(), 0xff, bytes);
  NMTextsArgs args = p.arguments();
  if (c.aux) together.give(args.call, 0);
  int32_t status = dynattn_nm_texts(&args);
  if (status != DYNATTN_OK) return "status " + std::to_string(status);
  std::vector<unsigned char> got(p.out->data.get(), p.out->data.get() + bytes);

  std::memset(p.out->data.get(), 0xff, bytes);
  for (size_t t = 0; t < p.key_count.size(); t++) {
    NMForwardArgs call = p.alone(t);
    if (c.aux) apart.give(call, static_cast<size_t>(p.query_start[t] * c.heads));
    status = dynattn_nm_forward(&call);
    if (status != DYNATTN_OK) return "status " + std::to_string(status) + " of a text alone";
  }
  if (std::memcmp(got.data(), p.out->data.get(), bytes) != 0) return "the output is not that of each text alone";
  if (!(together == apart)) return "the certificate is not that of each text alone";

  args = p.arguments();
  args.call.q_len--;
  if (dynattn_nm_texts(&args) != DYNATTN_BAD_ARGUMENT) return "a text beyond the last query is not refused";
  if (c.page_size == 0) return "";
  args = p.arguments();
  for (const int64_t bad : {int64_t{-1}, p.pages}) {
    const int32_t page = p.table[1];
    p.table[1] = static_cast<int32_t>(bad);
    status = dynattn_nm_texts(&args);
    p.table[1] = page;
    if (status != DYNATTN_BAD_PAGE) return "a page that there is not is not refused";
  }
  return "";
}

}  // namespace driver
