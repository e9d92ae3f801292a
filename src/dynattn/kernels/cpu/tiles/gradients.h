// The backward of one block of queries and one block of keys: the choice again, weights, and the five products.
//
// Where queries, keys, values or gradients hold numbers that are not finite, or so large that a product might not be, a
// tile of queries is taken carefully: its choice and scores as ever, and its sums pair by pair over what is kept.
#pragma once

#include "tiles/backward_plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Products of gradients up to this are finite with room to spare.
constexpr float kLargestGradient = 1e37f;

// A block of queries of one head: at most kBackwardQueries.
struct QueryRows {
  const BackwardPlan& plan;
  const BackwardScratch& scratch;
  Engine& engine;
  int64_t batch, head, first, count;

  int64_t tiles() const { return ceil_div(count, kQueries); }
  QueryTile tile(int64_t t) const {
    return {plan.scores, batch, head, first + t * kQueries, smaller<int64_t>(kQueries, count - t * kQueries)};
  }
};

// Row `i` of a block of queries, of a tensor with one row for each query.
DYNATTN_INLINE const uint16_t* own_row(const QueryRows& rows, const void* base, const int64_t strides[3], int64_t i) {
  return static_cast<const uint16_t*>(base) + rows.batch * strides[0] + rows.head * strides[1] +
         (rows.first + i) * strides[2];
}

DYNATTN_INLINE const uint16_t* query_row(const QueryRows& rows, int64_t i) {
  const NMForwardArgs& forward = rows.plan.args->forward;
  return own_row(rows, forward.query, forward.query_strides, i);
}

DYNATTN_INLINE const uint16_t* grad_row(const QueryRows& rows, int64_t i) {
  return own_row(rows, rows.plan.args->grad_out, rows.plan.args->grad_out_strides, i);
}

static float dot(const uint16_t* a, const uint16_t* b, int64_t dim) {
  const Words high = broadcast_words(0xffff0000u);
  Lanes even = broadcast_lanes(0.0f), odd = even;
  int64_t d = 0;
  for (; d + kTileDepth <= dim; d += kTileDepth) {
    const Words x = load_words(a + d), y = load_words(b + d);
    even = fmadd(low_half(x), low_half(y), even);
    odd = fmadd(floats_of(both(x, high)), floats_of(both(y, high)), odd);
  }
  alignas(64) float sums[kLanes];
  store(sums, add(even, odd));
  float sum = 0.0f;
  for (float lane : sums) sum += lane;
  for (; d < dim; d++) sum += from_bfloat16(a[d]) * from_bfloat16(b[d]);
  return sum;
}

// Rows of 32 queries as pairs of queries, [tile of dims][pair of queries][dim]; rows behind the last are 0.
template <class Row>
static void pair_rows(Row row, int64_t count, int64_t dim, int64_t dims, uint32_t* to) {
  for (int64_t i = 0; i < kQueries; i += 2) {
    const uint16_t* low = i < count ? row(i) : nullptr;
    const uint16_t* high = i + 1 < count ? row(i + 1) : nullptr;
    for (int64_t d = 0; d < dims * kTileRows; d++) {
      const uint32_t a = low != nullptr && d < dim ? low[d] : 0u, b = high != nullptr && d < dim ? high[d] : 0u;
      to[d / kTileRows * kTileWords + i / 2 * kTileRows + d % kTileRows] = a | b << 16;
    }
  }
}

// Of a query: where its weights begin, from the logsumexp, and delta. Queries that keep nothing, and those of padding,
// get weights of 0.
static void prepare_query(const QueryRows& rows, int64_t i) {
  const NMBackwardArgs& args = *rows.plan.args;
  const NMForwardArgs& forward = args.forward;
  const TilePlan& plan = rows.plan.scores;
  const BackwardScratch& s = rows.scratch;
  s.origin[i] = s.delta[i] = 0.0f;
  s.reference[i] = INFINITY;
  s.poisoned[i] = 0;
  if (i >= rows.count) return;
  const int64_t at = (rows.batch * forward.heads + rows.head) * forward.q_len + rows.first + i;
  const float logsumexp = forward.logsumexp[at];
  s.poisoned[i] = !(logsumexp < INFINITY);
  if (fabsf(logsumexp) < INFINITY) {
    // biases may be as large as floats are, so that they are subtracted before anything is multiplied
    const double unit = static_cast<double>(plan.exponent) / static_cast<double>(fabsf(forward.scale));
    s.origin[i] = plan.biased ? logsumexp : 0.0f;
    s.reference[i] = plan.biased ? 0.0f : static_cast<float>(logsumexp * unit);
  }
  const RowSums& sums = rows.plan.sums;
  if (sums.sum != nullptr && is_rough(logsumexp, forward.dtype)) {
    s.origin[i] = sums.origin[at], s.reference[i] = log2f(sums.sum[at]);
  }
  s.delta[i] = dot(grad_row(rows, i), own_row(rows, forward.out, forward.out_strides, i), forward.value_dim) -
               grad_logsumexp(args, at);
}

static void prepare_queries(const QueryRows& rows, const KeySection& section) {
  const BackwardPlan& plan = rows.plan;
  const NMForwardArgs& forward = plan.args->forward;
  const BackwardScratch& s = rows.scratch;
  for (int64_t t = 0; t < rows.tiles(); t++) {
    const int64_t from = t * kQueries, count = rows.tile(t).count;
    const float query_bound = pack_queries(plan.scores, reinterpret_cast<const char*>(query_row(rows, from)), count,
                                           kGroups, s.queries + t * kGroups * plan.scores.depth * kTileWords);
    const float grad_bound = pack_queries(plan.upstream, reinterpret_cast<const char*>(grad_row(rows, from)), count,
                                          kGroups, s.grads + t * kGroups * plan.upstream.depth * kTileWords);
    pair_rows([&](int64_t i) { return query_row(rows, from + i); }, count, forward.head_dim, plan.product.dims,
              s.query_pairs + t * plan.product.dims * kTileWords);
    pair_rows([&](int64_t i) { return grad_row(rows, from + i); }, count, forward.value_dim, plan.scores.dims,
              s.grad_pairs + t * plan.scores.dims * kTileWords);
    const float score = query_bound * section.key_bound * static_cast<float>(forward.head_dim);
    const float weight = grad_bound * section.value_bound * static_cast<float>(forward.value_dim);
    bool tame = score < 1e37f && score * plan.scores.multiplier * plan.scores.exponent < kReach &&
                weight < kLargestGradient;
    for (int64_t i = from; i < from + kQueries; i++) {
      prepare_query(rows, i);
      tame &= !s.poisoned[i] && fabsf(s.delta[i]) < kLargestGradient;
    }
    s.careful[t] = !tame;
    if (!tame) {  // its weights are 0 in the products over queries, where 0 times NaN or infinity would be NaN
      memset(s.query_pairs + t * plan.product.dims * kTileWords, 0, plan.product.dims * kTileBytes);
      memset(s.grad_pairs + t * plan.scores.dims * kTileWords, 0, plan.scores.dims * kTileBytes);
    }
  }
}

// The forward's choice among the scores of 16 queries, by the forward's own functions: marks in scratch.kept.
static void mark_kept(const QueryRows& rows, int group, bool careful) {
  const TilePlan& plan = rows.plan.scores;
  const Allowed& allowed = *rows.scratch.allowed;
  const ScoreTile tile = {rows.scratch.scores + group * kLanes, rows.scratch.kept + group * group_words(plan), nullptr,
                          plan.key_block};
  if (!allowed.all) mask_scores(plan, allowed, group, tile);
  if (allowed.cut && plan.m > 1) cut_scores(plan, allowed, group, tile);
  if (careful) {
    LaneState unused;
    clear(unused);
    clean_scores(tile, unused);
  }
  mark_chosen(plan, tile, allowed, group, careful);
}

// Weights and gradients of scores of 16 queries and one key, and what they are rounded to.
struct KeyGradient {
  Lanes weight, d_score;
};

struct GroupGradients {
  const QueryRows& rows;
  Lanes exponent, origin, reference, delta, keep;
  LaneMask poisoned;
  bool drops;

  GroupGradients(const QueryRows& block, int64_t first)
      : rows(block),
        exponent(broadcast_lanes(block.plan.scores.exponent)),
        origin(load_lanes(block.scratch.origin + first)),
        reference(load_lanes(block.scratch.reference + first)),
        delta(load_lanes(block.scratch.delta + first)),
        keep(broadcast_lanes(block.plan.args->forward.keep_factor)),
        poisoned(0),
        drops(block.plan.args->forward.drop_below > 0) {
    for (int i = 0; i < kLanes; i++) {
      if (block.scratch.poisoned[first + i]) poisoned = static_cast<LaneMask>(poisoned | 1u << i);
    }
  }

  inline __attribute__((always_inline)) KeyGradient operator()(Lanes score, Lanes d_weight, LaneMask kept,
                                                               LaneMask left) const {
    const Lanes none = broadcast_lanes(0.0f);
    Lanes weight = exp2_lanes(fmsub(sub(score, origin), exponent, reference));
    weight = select(poisoned, broadcast_lanes(NAN), weight);
    if (drops) d_weight = select(left, mul(d_weight, keep), none);
    const Lanes d_score = mul(weight, sub(d_weight, delta));
    return {select(drops ? static_cast<LaneMask>(kept & left) : kept, weight, none), select(kept, d_score, none)};
  }
};

// Weights and gradients of scores of 16 queries: rounded, as the products read them, and as floats in place of scores
// and of the gradients of weights.
static void grade_group(const QueryRows& rows, int64_t t, int group) {
  const TilePlan& plan = rows.plan.scores;
  const BackwardScratch& s = rows.scratch;
  const int64_t lane = t * kQueries + group * kLanes, words = group * group_words(plan);
  const GroupGradients gradient(rows, lane);
  const Words halves[2] = {broadcast_words(0xffffu), broadcast_words(0xffff0000u)};
  for (int place = 0; place < plan.key_block; place += 2) {
    const int64_t at = words + place / 2 * kLanes;
    const Words kept = load_words(s.kept + at), left = load_words((gradient.drops ? s.left : s.kept) + at);
    Words both_keys = broadcast_words(0);
    for (int half = 0; half < 2 && place + half < plan.key_block; half++) {
      const int key = plan.key_at[place + half];
      float* const score = s.scores + key * kQueries + group * kLanes;
      float* const d_score = s.d_scores + key * kQueries + group * kLanes;
      const KeyGradient of = gradient(load_lanes(score), load_lanes(d_score), nonzero(both(kept, halves[half])),
                                      nonzero(both(left, halves[half])));
      store(score, of.weight);
      store(d_score, of.d_score);
      const Words rounded_gradient = rounded(of.d_score);
      store_halves(s.weight_rows + key * kBackwardQueries + lane, rounded(of.weight));
      store_halves(s.gradient_rows + key * kBackwardQueries + lane, rounded_gradient);
      both_keys = half == 0 ? both(rounded_gradient, halves[0]) : pair(both_keys, rounded_gradient);
    }
    store(s.pairs + at, both_keys);
  }
}

// A tile of queries takes no part in the products over queries.
static void leave_out(const QueryRows& rows, int64_t t) {
  for (int key = 0; key < rows.plan.scores.key_block; key++) {
    const int64_t at = key * kBackwardQueries + t * kQueries;
    memset(rows.scratch.weight_rows + at, 0, kQueries * sizeof(uint16_t));
    memset(rows.scratch.gradient_rows + at, 0, kQueries * sizeof(uint16_t));
  }
}

static void add_row(float factor, const uint16_t* row, int64_t dim, float* to, int64_t stride) {
  for (int64_t d = 0; d < dim; d++) to[d * stride] += factor * from_bfloat16(row[d]);
}

// The three sums pair by pair. Pairs that are not kept are not touched.
static void add_carefully(const QueryRows& rows, const KeySection& section, int64_t t, int64_t block, float* d_query) {
  const BackwardPlan& plan = rows.plan;
  const NMForwardArgs& forward = plan.args->forward;
  const BackwardScratch& s = rows.scratch;
  const int64_t kv_head = rows.batch * forward.kv_heads + rows.head / (forward.heads / forward.kv_heads);
  const char* keys = head_of(forward, forward.key, forward.key_strides, kv_head);
  for (int64_t i = 0; i < plan.scores.key_block && block * plan.scores.key_block + i < forward.kv_len; i++) {
    const uint16_t* key = row_of(keys, block * plan.scores.key_block + i, forward.key_strides[2]);
    const int64_t row = (block - section.first) * plan.scores.padded + i;
    for (int64_t query = 0; query < rows.tile(t).count; query++) {
      const int place = plan.scores.place[i];
      const int64_t word = query / kLanes * group_words(plan.scores) + place / 2 * kLanes + query % kLanes;
      if ((s.kept[word] >> (place % 2 * 16) & 0xffffu) == 0) continue;
      const float weight = s.scores[i * kQueries + query], d_score = s.d_scores[i * kQueries + query];
      const int64_t own = t * kQueries + query;
      add_row(weight, grad_row(rows, own), forward.value_dim, section.d_value + row * value_width(plan), 1);
      add_row(d_score, query_row(rows, own), forward.head_dim, section.d_key + row * key_width(plan), 1);
      add_row(d_score, key, forward.head_dim, d_query + query, kQueries);
    }
  }
}

static void write_d_scores(const QueryRows& rows, int64_t t, int64_t block) {
  const NMBackwardArgs& args = *rows.plan.args;
  const int64_t head = rows.batch * args.forward.heads + rows.head, first = block * rows.plan.scores.key_block;
  const int64_t keys = smaller<int64_t>(rows.plan.scores.key_block, args.forward.kv_len - first);
  for (int64_t query = 0; query < rows.tile(t).count; query++) {
    const int64_t row = head * args.forward.q_len + rows.tile(t).first + query;
    float* to = args.d_scores + row * args.forward.kv_len + first;
    for (int64_t i = 0; i < keys; i++) to[i] = rows.scratch.d_scores[i * kQueries + query];
  }
}

// One tile of queries. True where it takes part in the products over queries.
static bool grade_tile(const QueryRows& rows, const KeySection& section, int64_t t, int64_t block, float* d_query) {
  const BackwardPlan& plan = rows.plan;
  const NMForwardArgs& forward = plan.args->forward;
  const BackwardScratch& s = rows.scratch;
  const QueryTile at = rows.tile(t);
  const int64_t first_key = block * plan.scores.key_block;
  find_allowed(at, first_key, *s.allowed);
  if (!s.allowed->any) return false;
  const bool careful = s.careful[t] || s.allowed->unsafe;
  const int64_t kv_head = rows.batch * forward.kv_heads + rows.head / (forward.heads / forward.kv_heads);
  const KeyRows keys = rows_of_block(plan.scores, block, head_of(forward, forward.key, forward.key_strides, kv_head),
                                     forward.key_strides[2] * 2, section.keys,
                                     larger(section.first, plan.scores.packed_from));
  const KeyRows values = rows_of_block(
      plan.upstream, block, head_of(forward, forward.value, forward.value_strides, kv_head),
      forward.value_strides[2] * 2, section.values, larger(section.first, plan.upstream.packed_from));
  score_rows(plan.scores, rows.engine, keys, s.queries + t * kGroups * plan.scores.depth * kTileWords, kGroups,
             s.scores);
  score_rows(plan.upstream, rows.engine, values, s.grads + t * kGroups * plan.upstream.depth * kTileWords, kGroups,
             s.d_scores);
  for (int group = 0; group < kGroups; group++) mark_kept(rows, group, careful);
  if (forward.drop_below > 0) {
    memcpy(s.left, s.kept, static_cast<size_t>(kGroups * group_words(plan.scores)) * sizeof(uint32_t));
    drop_weights(at, first_key, kGroups, false, s.left);
  }
  for (int group = 0; group < kGroups; group++) grade_group(rows, t, group);
  if (plan.args->d_scores != nullptr) write_d_scores(rows, t, block);
  if (careful) {
    add_carefully(rows, section, t, block, d_query);
    return false;
  }
  const char* turned = section.turned + (block - section.first) * value_block_bytes(plan.product);
  add_columns(plan.product, rows.engine, turned, s.pairs, kGroups, plan.product.padded / kTileDepth, d_query);
  return true;
}

// sums[key][dim] += rows · pairs, over the queries of all tiles.
static void add_over_queries(const QueryRows& rows, const uint16_t* keys, const uint32_t* pairs, int64_t dims,
                             float* sums) {
  constexpr int64_t kRowBytes = kBackwardQueries * 2;
  const Operand a = {reinterpret_cast<const char*>(keys), kTileRows * kRowBytes, kTileDepth * 2, kRowBytes};
  for (int64_t dim = 0; dim < dims; dim += 2) {
    const Operand b = {reinterpret_cast<const char*>(pairs + dim * kTileWords), kTileBytes, dims * kTileBytes, 64};
    multiply_panel<true>(rows.engine, a, ceil_div(rows.plan.scores.key_block, kTileRows), b, dim + 1 < dims ? 2 : 1,
                         Terms(), rows.tiles(), sums + dim * kTileRows, dims * kTileRows);
  }
}

// All tiles of a block of queries. d_query: [tile of queries][dim][kQueries].
static void grade_block(const QueryRows& rows, const KeySection& section, int64_t block, float* d_query) {
  const BackwardPlan& plan = rows.plan;
  bool any = false;
  for (int64_t t = 0; t < rows.tiles(); t++) {
    const bool takes_part = grade_tile(rows, section, t, block, d_query + t * key_width(plan) * kQueries);
    if (!takes_part) leave_out(rows, t);
    any |= takes_part;
  }
  if (!any) return;
  const int64_t row = (block - section.first) * plan.scores.padded;
  add_over_queries(rows, rows.scratch.weight_rows, rows.scratch.grad_pairs, plan.scores.dims,
                   section.d_value + row * value_width(plan));
  add_over_queries(rows, rows.scratch.gradient_rows, rows.scratch.query_pairs, plan.product.dims,
                   section.d_key + row * key_width(plan));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
