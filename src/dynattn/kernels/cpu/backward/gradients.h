// One query block of the backward pass against a section of a head's keys, tile by tile.
//
//     S = Q Kᵀ and the choice, as the forward makes them,    P = exp(S - logsumexp) where kept
//     dP = dO Vᵀ,    dS = P ∘ (dP - delta),    delta_i = dO_i · out_i - dlogsumexp_i
//     dQ += dS K,    dK += dSᵀ Q,    dV += Pᵀ dO
//
// The first product and the choice are the forward's own code, so the choice is the same to the bit. dP is that code
// again, with dO for queries and V for keys; dS K is the forward's P V, with keys for values. Only the products along
// the queries (key_sums.h) are new. The factor `scale` of dQ and dK waits until they are written.
#pragma once

#include "backward/key_sums.h"
#include "nm/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct BackwardPlan {
  const NMBackwardArgs* args;
  RowSums sums;  // NULL where every logsumexp is fine enough
  NMForwardArgs upstream_args, product_args;
  Plan scores;    // of Q Kᵀ
  Plan upstream;  // of dO Vᵀ
  Plan product;   // of dS K
};

// A section of one head's keys as the kernels read them, and the gradients of its keys and values so far.
struct Section {
  int64_t first_tile, end_tile;
  int64_t room;     // keys it has memory for
  float* keys;      // packed
  float* values;    // packed as keys are
  float* key_rows;  // [tile][chunk][tile keys][chunk vectors · kWidth], as values are packed
  float* d_key;     // [chunk][room][chunk vectors · kWidth]
  float* d_value;   // the same
  float key_bound;  // largest magnitudes
  float value_bound;
};

// A thread's memory for one query block.
struct BackwardScratch {
  Scratch scores;     // weights come to lie where scores did
  float* grads;       // dO, packed as queries are
  float* d_scores;    // as weights lie
  float* query_rows;  // [chunk][kBackwardQueryBlock][chunk vectors · kWidth]
  float* grad_rows;
  float* delta;
  float* share;       // factor of a row's weights: 1 where they are relative to its logsumexp
  uint8_t* poisoned;  // rows whose forward met NaN or an infinite score
  Strip* strips;      // one for each survivor of a group
  KeyList* lists;     // one for each member of a group
  RowSet* rows[3];    // by BandKind
};

struct BackwardQueryBlock {
  const BackwardPlan& plan;
  const Section& section;
  const BackwardScratch& scratch;
  QueryBlock scores;   // `careful` may become true from one tile to the next
  QueryBlock product;  // its rows' `out` is dQ
};

// Lays out `count` rows of `dim` floats as add_rows() reads them: cut into chunks and padded with zeros.
static void lay_query_rows(const Plan& plan, const char* base, int64_t stride, int64_t dim, int64_t count, float* to) {
  alignas(64) float room[kMaxHeadDim];
  const int64_t width = int64_t{plan.chunk} * kWidth;
  for (int64_t i = 0; i < count; i++) {
    const float* row = float_row(element(base, i * stride, plan.args->dtype), plan.args->dtype, dim, room);
    cut_row(plan, row, dim, to + i * width, kBackwardQueryBlock * width);
  }
}

// Computes dS of one band of 1:2 rows. Only the chosen one of each pair is multiplied.
template <int kR>
static void picked_gradient_band(const BackwardQueryBlock& block, int64_t band, int64_t tile) {
  constexpr int kWords = kTile / 2 / kWidth, kAtOnce = kR < kPickedRows ? kR : kPickedRows;
  const int64_t dim = block.plan.upstream.args->head_dim;
  const float* value = block.section.values + (tile - block.section.first_tile) * kTile * dim;
  const int64_t first = band * kR * kTile;
  const uint32_t* left = block.scratch.scores.left;
  const Vec keep_factor = broadcast(block.plan.args->forward.keep_factor);
  for (int word = 0; word < kWords; word++) {
    for (int r = 0; r < kR; r += kAtOnce) {
      Vec d_weights[kAtOnce];
      multiply_picked<kAtOnce>(block.scratch.grads + band * kR * dim + r, kR, value + word * 2 * kWidth * dim, dim,
                               block.scratch.scores.choice + (band * kR + r) * kWords + word, kWords, d_weights);
#pragma GCC unroll 16
      for (int i = 0; i < kAtOnce; i++) {
        const int64_t at = int64_t{r + i} * (kTile / 2) + word * kWidth;
        if (left != nullptr) d_weights[i] = mul(d_weights[i], drop_factors(left[(first + at) / kWidth], keep_factor));
        const Vec delta = broadcast(block.scratch.delta[band * kR + r + i]);
        store(block.scratch.d_scores + first + at,
              mul(load(block.scratch.scores.scores + first + at), sub(d_weights[i], delta)));
      }
    }
  }
}

// Computes dS of one band: dP, from which the survivors of the choice are picked, less delta, times the weights.
template <int kR, int kV, int kBits>
static void gradient_band(const BackwardQueryBlock& block, int64_t band, int64_t tile, BandKind kind) {
  constexpr int kPanelKeys = kV * kWidth, kWords = kTile / 2 / kWidth;
  const Plan& plan = block.plan.upstream;
  const int64_t dim = plan.args->head_dim, rows = band * kR;
  const float* value = block.section.values + (tile - block.section.first_tile) * plan.tile * dim;
  const float* weights = block.scratch.scores.scores + rows * plan.tile;
  const uint32_t* left =
      block.scratch.scores.left == nullptr ? nullptr : block.scratch.scores.left + rows * plan.tile / kWidth;
  const Vec keep_factor = broadcast(block.plan.args->forward.keep_factor);
  float* d_scores = block.scratch.d_scores + rows * plan.tile;
  for (int panel = 0; panel < plan.tile / kPanelKeys; panel++) {
    Vec acc[kR][kV];
    multiply<kR, kV>(block.scratch.grads + rows * dim, value + int64_t{panel} * kPanelKeys * dim, dim, acc);
#pragma GCC unroll 16
    for (int r = 0; r < kR; r++) {
      const Vec delta = broadcast(block.scratch.delta[rows + r]);
      if (kBits > 0 && kind == kChosenInRegisters) {
        const uint32_t* choice = block.scratch.scores.choice + (rows + r) * kWords + panel * kBits;
#pragma GCC unroll 2
        for (int s = 0; s < kBits; s++) {  // survivors of a group: as many as bits of a place
          const int64_t at = int64_t{r} * (kTile / 2) + (panel * kBits + s) * kWidth;
          Vec d_weight = pick<kBits == 2 ? 2 : 1>(acc[r], choice[s]);
          if (left != nullptr) d_weight = mul(d_weight, drop_factors(left[at / kWidth], keep_factor));
          store(d_scores + at, mul(load(weights + at), sub(d_weight, delta)));
        }
      } else {
#pragma GCC unroll 4
        for (int v = 0; v < kV; v++) {
          const int64_t at = int64_t{r} * plan.tile + panel * kPanelKeys + v * kWidth;
          const Vec weight = load(weights + at);
          const Vec d_weight =
              left == nullptr ? acc[r][v] : mul(acc[r][v], drop_factors(left[at / kWidth], keep_factor));
          const Vec d_score = mul(weight, sub(d_weight, delta));
          store(d_scores + at, select(greater(zero(), weight), zero(), d_score));  // below zero: not kept
        }
      }
    }
  }
}

// dQ += dS K where keys may be NaN or infinite. Keys that are not kept are not touched.
static void add_keys_carefully(const BackwardQueryBlock& block, const float* key_rows) {
  const Plan& plan = block.plan.product;
  const RowStates& rows = block.product.scratch.rows;
  const int64_t width = int64_t{plan.chunk} * kWidth;
  for (int64_t i = 0; i < block.scores.count; i++) {
    if (block.scratch.scores.kinds[i / plan.rows] == kSkipped) continue;
    for (int64_t position = 0; position < plan.tile; position++) {
      const int64_t at = i * plan.tile + position;
      if (block.scratch.scores.scores[at] < 0.0f) continue;
      const Vec d_score = broadcast(block.scratch.d_scores[at]);
      for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
        const float* key = key_rows + chunk * plan.tile * width + plan.value_of[position];
        float* to = rows.out + i * rows.out_stride + chunk * width;
        for (int64_t k = 0; k < width; k += kWidth) store(to + k, fmadd(d_score, load(key + k), load(to + k)));
      }
    }
  }
}

// Sorts the block's rows by the way in which their weights in this tile were chosen.
static void sort_rows(const BackwardQueryBlock& block) {
  const Plan& plan = block.plan.scores;
  const Scratch& scratch = block.scratch.scores;
  for (RowSet* set : block.scratch.rows) set->count = 0;
  for (int64_t i = 0; i < block.scores.count; i++) {
    const int64_t band = i / plan.rows, row = i % plan.rows;
    const BandKind kind = scratch.kinds[band];
    RowSet& set = *block.scratch.rows[kind];
    const int64_t at = band * plan.rows * plan.tile + row * (kind == kChosenInRegisters ? kTile / 2 : plan.tile);
    set.ids[set.count] = static_cast<int32_t>(i);
    set.weights[set.count] = scratch.scores + at;
    set.gradients[set.count] = block.scratch.d_scores + at;
    set.choice[set.count] = scratch.choice + i * (kTile / 2 / kWidth);
    set.count++;
  }
}

// Σ factors · rows over a key's list, in every chunk of the key's place in `sums`.
static void add_list_to(const Plan& plan, float* sums, int64_t room, int64_t key, const float* rows,
                        const float* factors, const KeyList& list) {
  const int64_t width = int64_t{plan.chunk} * kWidth;
  for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
    add_rows(plan.chunk, sums + (chunk * room + key) * width, rows + chunk * kBackwardQueryBlock * width, factors,
             list.rows, list.count);
  }
}

// Adds a key's list to its dV and dK.
static void add_list(const BackwardQueryBlock& block, const KeyList& list, int64_t key) {
  if (list.count == 0) return;
  const Section& section = block.section;
  add_list_to(block.plan.scores, section.d_value, section.room, key, block.scratch.grad_rows, list.weights, list);
  add_list_to(block.plan.product, section.d_key, section.room, key, block.scratch.query_rows, list.gradients, list);
}

// Adds to dK and dV of the groups whose survivors are `word` (and `word` + 1 where two of a group survive), where they
// begin among the tile's first `keys`: no query is allowed others.
template <int kBits>
static void add_survivor_columns(const BackwardQueryBlock& block, int word, int64_t first_key, int64_t keys) {
  constexpr int kM = 1 << kBits;
  const RowSet& set = *block.scratch.rows[kChosenInRegisters];
  const Plan& plan = block.plan.scores;
  const int position = word / kBits * kM * kWidth;  // of slot 0 in lane 0
  if (plan.key_of[position] >= keys) return;
  for (int s = 0; s < kBits; s++) {
    Strip& strip = block.scratch.strips[s];
    transpose_strip(set, set.weights, (word + s) * kWidth, strip.weights);
    transpose_strip(set, set.gradients, (word + s) * kWidth, strip.gradients);
    transpose_places<kBits>(set, word + s, strip.places);
  }
  for (int lane = 0; lane < kWidth; lane++) {
    for (int slot = 0; slot < kM; slot++) block.scratch.lists[slot].count = 0;
    for (int s = 0; s < kBits; s++) list_survivors<kBits>(set, block.scratch.strips[s], lane, block.scratch.lists);
    for (int slot = 0; slot < kM; slot++) {
      add_list(block, block.scratch.lists[slot], first_key + plan.key_of[position + slot * kWidth + lane]);
    }
  }
}

static void add_position_columns(const BackwardQueryBlock& block, int64_t first_key, int64_t keys) {
  const RowSet& set = *block.scratch.rows[kByPosition];
  const Plan& plan = block.plan.scores;
  Strip& strip = block.scratch.strips[0];
  KeyList& list = block.scratch.lists[0];
  for (int position = 0; position < plan.tile; position += kWidth) {
    if (plan.key_of[position] >= keys) continue;
    transpose_strip(set, set.weights, position, strip.weights);
    transpose_strip(set, set.gradients, position, strip.gradients);
    for (int lane = 0; lane < kWidth; lane++) {
      list.count = 0;
      list_kept(set, strip, lane, list);
      add_list(block, list, first_key + plan.key_of[position + lane]);
    }
  }
}

// Writes dS of this tile for rows of one kind, where the caller asked for it.
template <int kBits>
static void write_d_scores(const BackwardQueryBlock& block, int64_t tile, BandKind kind) {
  const Plan& plan = block.plan.scores;
  const NMForwardArgs& args = *plan.args;
  const int64_t first_key = tile * plan.tile, head = block.scores.batch * args.heads + block.scores.index;
  const RowSet& set = *block.scratch.rows[kind];
  const int entries = kind == kByPosition ? plan.tile : kTile / 2;
  for (int i = 0; i < set.count; i++) {
    float* row = block.plan.args->d_scores + (head * args.q_len + block.scores.first + set.ids[i]) * args.kv_len;
    for (int at = 0; at < entries; at++) {
      int position = at;
      if (kBits > 0 && kind == kChosenInRegisters) {
        const int word = at / kWidth, lane = at % kWidth;
        const int place = static_cast<int>(set.choice[i][word] >> (kBits * lane)) & ((1 << kBits) - 1);
        position = (word / larger(kBits, 1) * (1 << kBits) + place) * kWidth + lane;
      }
      const int64_t key = first_key + plan.key_of[position];
      if (key < args.kv_len && !(set.weights[i][at] < 0.0f)) row[key] = set.gradients[i][at];
    }
  }
}

// Weights that are relative to a row's own score become shares of their sum. Marks of what is not kept stay negative.
static void share_weights(const BackwardQueryBlock& block) {
  const Plan& plan = block.plan.scores;
  const Scratch& scratch = block.scratch.scores;
  for (int64_t i = 0; i < block.scores.count; i++) {
    const BandKind kind = scratch.kinds[i / plan.rows];
    if (kind == kSkipped || block.scratch.share[i] == 1.0f) continue;
    const RowWeights weights = weights_of(plan, kind, i);
    scale_row(scratch.scores + weights.at, weights.count, block.scratch.share[i]);
  }
}

static void poison_rows(const BackwardQueryBlock& block) {
  const Plan& plan = block.plan.scores;
  for (int64_t i = 0; i < block.scores.count; i++) {
    if (!block.scratch.poisoned[i]) continue;
    for (int64_t at = i * plan.tile; at < (i + 1) * plan.tile; at++) {
      if (block.scratch.scores.scores[at] >= 0.0f) block.scratch.scores.scores[at] = NAN;
    }
  }
}

template <int kR, int kV, int kBits>
static void backward_tile(BackwardQueryBlock& block, int64_t tile) {
  const Plan& plan = block.plan.scores;
  bool any = false;
  if (!weigh_tile<kR, kV>(block.scores, tile, &any)) {  // tiles before had no bias to be careful of
    block.scores.careful = true;
    weigh_tile<kR, kV>(block.scores, tile, &any);
  }
  if (!any) return;
  if (block.plan.sums.sum != nullptr) share_weights(block);
  if (block.scores.careful) poison_rows(block);
  const bool drops = plan.args->drop_below > 0;
  if (drops) draw_tile(block.scores, tile);
  for (int64_t band = 0; band * kR < block.scores.count; band++) {
    const BandKind kind = block.scratch.scores.kinds[band];
    if (kind == kSkipped) continue;
    if (kPicksFirst && kBits == 1 && kind == kChosenInRegisters) {
      picked_gradient_band<kR>(block, band, tile);
    } else {
      gradient_band<kR, kV, kBits>(block, band, tile, kind);
    }
  }
  const int64_t local = tile - block.section.first_tile;
  const float* key_rows = block.section.key_rows + local * plan.tile * value_width(block.plan.product);
  if (block.scores.careful) {
    add_keys_carefully(block, key_rows);
  } else {
    add_values<kR, kV, kBits>(block.product, key_rows);
  }
  if (drops) drop_weights(block.scores, 0.0f);  // for dV; dS was made of the weights themselves
  sort_rows(block);
  const int64_t keys = allowed_keys(plan, block.scores.first + block.scores.count - 1, tile * plan.tile);
  if constexpr (kBits > 0) {
    if (block.scratch.rows[kChosenInRegisters]->count > 0) {
      for (int word = 0; word < kTile / 2 / kWidth; word += kBits) {
        add_survivor_columns<kBits>(block, word, local * plan.tile, keys);
      }
    }
  }
  if (block.scratch.rows[kByPosition]->count > 0) add_position_columns(block, local * plan.tile, keys);
  if (block.plan.args->d_scores != nullptr) {
    write_d_scores<kBits>(block, tile, kChosenInRegisters);
    write_d_scores<kBits>(block, tile, kByPosition);
  }
}

template <int kR, int kV, int kBits>
static void backward_tiles(BackwardQueryBlock& block) {
  const int64_t last = block.scores.first + block.scores.count - 1;
  for (int64_t tile = block.section.first_tile; tile < block.section.end_tile; tile++) {
    if (allowed_keys(block.plan.scores, last, tile * block.plan.scores.tile) == 0) break;
    backward_tile<kR, kV, kBits>(block, tile);
  }
}

static void backward_tiles(BackwardQueryBlock& block) {
  const bool single = block.plan.scores.rows == 1;
  switch (block.plan.scores.layout) {
    case Layout::kOneOfTwo:
      return single ? backward_tiles<1, kPanel, 1>(block) : backward_tiles<kRows, kPanel, 1>(block);
    case Layout::kTwoOfFour:
      return single ? backward_tiles<1, kPanelWide, 2>(block) : backward_tiles<kRowsWide, kPanelWide, 2>(block);
    case Layout::kPositions:
      break;
  }
  if (block.plan.scores.rows == kRowsBlocks) return backward_tiles<kRowsBlocks, kPanel, 0>(block);
  if (block.plan.scores.rows == kRowsFine) return backward_tiles<kRowsFine, 1, 0>(block);
  return single ? backward_tiles<1, kPanel, 0>(block) : backward_tiles<kRows, kPanel, 0>(block);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
