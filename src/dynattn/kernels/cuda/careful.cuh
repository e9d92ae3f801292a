// Computes a query again, slowly, where values hold NaN or infinity under a weight of 0.
//
// The tensor cores multiply every stored weight, also the 0 of a forbidden key or of one dropped from a dense tile, and
// 0 · NaN is NaN. A non-finite value must reach only the queries that keep its key: unwritten slots of a KV cache may hold
// anything. Looking at every value beforehand would cost the loop that is always run; but such a leak always shows, as NaN
// in a row whose sum of weights is a number. Only these rows come here: the definition, a warp a row, from global memory.
#pragma once

#include "dropout.cuh"
#include "softmax.cuh"

namespace dynattn {

// The scores of four keys that stand STRIDE apart, from `key` on; -inf where a pair is forbidden.
template <class Element, MaskKind MASK, int STRIDE>
DYNATTN_DEVICE void scores_of_group(const ForwardParams& p, const Place& place, int query, int key, float (&s)[4]) {
  using Raw = typename Format<Element>::Raw;
  const Raw* q = rows_of(static_cast<const Raw*>(p.query), p.query_strides, place.batch, place.head) +
                 query * p.query_strides[2];
  const Raw* k = rows_of(static_cast<const Raw*>(p.key), p.key_strides, place.batch, place.kv_head);
  float bias[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if constexpr (MASK != MaskKind::none) {
    MaskRow<Element, MASK>(p, place, query).template read<STRIDE>(key, bias);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    s[i] = -INFINITY_F;
    if (key + i * STRIDE > last_key(p, query) || bias[i] == -INFINITY_F) continue;
    float product = 0.0f;
    const Raw* row = k + (key + i * STRIDE) * p.key_strides[2];
#pragma unroll 1
    for (int d = 0; d < p.head_dim; ++d) product += Format<Element>::value(q[d]) * Format<Element>::value(row[d]);
    s[i] = product * p.scale + bias[i];
  }
}

// Called by a whole warp; writes the row of `out` anew.
template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool BAND, int STRIDE, bool DROPOUT>
DYNATTN_DEVICE void recompute_row(const ForwardParams& p, const Place& place, int query, int lane) {
  constexpr int COLUMNS = HEAD_DIM / 32;  // how many columns a lane has: lane, lane + 32, …
  constexpr float NOT_KEPT = -1.0f;
  using Raw = typename Format<Element>::Raw;
  const Raw* value = rows_of(static_cast<const Raw*>(p.value), p.value_strides, place.batch, place.kv_head);
  const Dropout<DROPOUT, STRIDE> dropout(p, place.batch, place.head);
  float sum = 0.0f, base = -INFINITY_F, o[COLUMNS] = {};
  for (int key0 = 0; key0 <= last_key(p, query); key0 += 128) {
    const int key = key0 + key_at<STRIDE>(4 * lane);
    float s[4], largest = -INFINITY_F;
    bool keep[4];
    scores_of_group<Element, MASK, STRIDE>(p, place, query, key, s);
    choice_flags<PATTERN>(s, keep);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      keep[i] = (keep[i] || (BAND && in_band(p, query, key + i * STRIDE))) && s[i] != -INFINITY_F;
      if (keep[i]) largest = maximum(largest, s[i]);
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) largest = maximum(largest, shuffle_xor(largest, step));
    const float raised = maximum(base, largest);
    if (raised == -INFINITY_F) continue;
    const float correction = exp2_fast((base - raised) * LOG2_E);
    base = raised;
    sum *= correction;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) o[c] *= correction;
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = keep[i] ? exp2_fast((s[i] - base) * LOG2_E) : NOT_KEPT;
#pragma unroll 1
    for (int owner = 0; owner < 32; ++owner) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float w = shuffle(s[i], owner);
        if (w == NOT_KEPT) continue;
        sum += w;
        const int of_owner = key0 + key_at<STRIDE>(4 * owner + i);
        if (dropout.drops(query, of_owner)) w = 0.0f;
        const Raw* row = value + of_owner * p.value_strides[2];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
          if (lane + 32 * c < p.value_dim) o[c] += w * Format<Element>::value(row[lane + 32 * c]);
        }
      }
    }
  }
  const float factor = DROPOUT ? p.keep_factor : 1.0f;
  Raw* out = rows_of(static_cast<Raw*>(p.out), p.out_strides, place.batch, place.head) + query * p.out_strides[2];
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    if (lane + 32 * c < p.value_dim) out[lane + 32 * c] = Format<Element>::raw(factor * o[c] / sum);
  }
}

// The rows of a warp that leaked, with a bit for each: row g + 8 · half of the n-th 16 queries is bit 4 g + 2 n + half.
DYNATTN_DEVICE u32 leaked_bits(const bool (&leaked)[2], int tile) {
  u32 bits = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    u32 lanes = ballot(leaked[half]);
    lanes |= lanes >> 1;  // any of the four lanes that share the row
    lanes |= lanes >> 2;
    bits |= (lanes & 0x11111111u) << (2 * tile + half);
  }
  return bits;
}

// Recomputes the rows whose bits are set, of a warp whose queries start at `first_query`.
template <class Element, int HEAD_DIM, Pattern PATTERN, MaskKind MASK, bool BAND, int STRIDE, bool DROPOUT>
DYNATTN_DEVICE void repair_rows(const ForwardParams& p, const Place& place, int first_query, u32 leaked, int lane) {
#pragma unroll 1
  for (int bit = 0; bit < 32; ++bit) {
    if (!(leaked >> bit & 1)) continue;
    const int row = 8 * (bit & 1) + 16 * (bit >> 1 & 1) + (bit >> 2);
    recompute_row<Element, HEAD_DIM, PATTERN, MASK, BAND, STRIDE, DROPOUT>(p, place, first_query + row, lane);
  }
}

}  // namespace dynattn
