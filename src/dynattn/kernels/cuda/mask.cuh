// Which pairs are allowed, by lengths, causality and masks, and which are kept besides the choice, by window and sinks.
//
// A forbidden pair has score -inf. A mask is read through its strides, never expanded.
#pragma once

#include "choice.cuh"
#include "params.cuh"

namespace dynattn {

enum class MaskKind { none, boolean, float32, element };  // boolean: true is allowed; the others are added to scores

template <MaskKind MASK>
constexpr bool IS_BIAS = MASK == MaskKind::float32 || MASK == MaskKind::element;

// The block's place in the problem. The grid has one dimension, query blocks fastest, so that the blocks that run
// together share keys and values in the L2 cache; the last queries come first, since causal ones have the most to do.
struct Place {
  int batch, head, kv_head, first_query;
  long long row0;  // the place of the first query in arrays [batch, heads, q_len]
};
DYNATTN_DEVICE Place place_of_block(const ForwardParams& p, int block, int query_tile) {
  const int tiles = (p.q_len + query_tile - 1) / query_tile;
  const int tile = tiles - 1 - block % tiles, pair = block / tiles;
  const int head = pair % p.heads;
  return {pair / p.heads, head, head / (p.heads / p.kv_heads), tile * query_tile,
          static_cast<long long>(pair) * p.q_len + tile * query_tile};
}

template <class T>
DYNATTN_DEVICE T* rows_of(T* base, const long long (&strides)[3], int batch, int head) {
  return base + batch * strides[0] + head * strides[1];
}

// The last key that lengths and causality allow for a query (-1: none).
DYNATTN_DEVICE int last_key(const ForwardParams& p, int query) {
  const int causal_last = query + p.kv_len - p.q_len;
  return p.causal && causal_last < p.kv_len - 1 ? causal_last : p.kv_len - 1;
}

// Keys that some query of [first, first + count) may attend to are those below this.
DYNATTN_DEVICE int keys_needed(const ForwardParams& p, int first, int count) {
  const int last_query = first + count < p.q_len ? first + count - 1 : p.q_len - 1;
  const int needed = last_key(p, last_query) + 1;
  return needed > 0 ? needed : 0;
}

DYNATTN_DEVICE bool in_band(const ForwardParams& p, int query, int key) {
  const int distance = query + p.kv_len - p.q_len - key;
  return (distance < p.window && -distance < p.window) || key < p.sinks;
}

// Whether window or sinks touch a tile of keys for some query of [first, first + count).
DYNATTN_DEVICE bool band_touches(const ForwardParams& p, int first, int count, int key0, int keys) {
  const int nearest = first + p.kv_len - p.q_len, farthest = nearest + count - 1;
  const bool window = p.window > 0 && key0 < static_cast<long long>(farthest) + p.window &&
                      static_cast<long long>(key0) + keys - 1 > static_cast<long long>(nearest) - p.window;
  return window || key0 < p.sinks;
}

// One query's row of a mask.
template <class Element, MaskKind MASK>
struct MaskRow {
  static constexpr int BYTES = MASK == MaskKind::float32 ? 4 : MASK == MaskKind::element ? 2 : 1;
  struct alignas(4 * BYTES) Quad {
    u32 words[BYTES];
  };
  const unsigned char* row;
  long long key_stride;
  int keys;    // 0 where the query lies beyond the last one: nothing may be read
  bool quads;  // four keys lie together, aligned: read them at once

  DYNATTN_DEVICE MaskRow(const ForwardParams& p, const Place& place, int query)
      : row(static_cast<const unsigned char*>(p.mask) +
            (place.batch * p.mask_strides[0] + place.head * p.mask_strides[1] + query * p.mask_strides[2]) * BYTES),
        key_stride(p.mask_strides[3]),
        keys(query < p.q_len ? p.kv_len : 0),
        quads(key_stride == 1 && reinterpret_cast<u64>(row) % (4 * BYTES) == 0) {}

  static DYNATTN_DEVICE float bias_of(u32 bits) {
    if constexpr (MASK == MaskKind::boolean) {
      return bits & 0xFF ? 0.0f : -INFINITY_F;
    } else if constexpr (MASK == MaskKind::float32) {
      return float_of(bits);
    } else {
      return Element::value(static_cast<unsigned short>(bits));
    }
  }

  // What is added to the scores of four keys STRIDE apart, `key` the first (a multiple of 4 with stride 1); -inf forbids.
  template <int STRIDE>
  DYNATTN_DEVICE void read(int key, float (&bias)[4]) const {
    if (STRIDE == 1 && quads && key + 4 <= keys) {
      const Quad quad = *reinterpret_cast<const Quad*>(row + static_cast<long long>(key) * BYTES);
#pragma unroll
      for (int i = 0; i < 4; ++i) bias[i] = bias_of(quad.words[i * BYTES / 4] >> (i * BYTES % 4 * 8));
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned char* entry = row + (key + i * STRIDE) * key_stride * BYTES;
      if (key + i * STRIDE >= keys) {
        bias[i] = -INFINITY_F;
      } else if constexpr (MASK == MaskKind::boolean) {
        bias[i] = bias_of(*entry);
      } else if constexpr (MASK == MaskKind::float32) {
        bias[i] = bias_of(*reinterpret_cast<const u32*>(entry));
      } else {
        bias[i] = bias_of(*reinterpret_cast<const unsigned short*>(entry));
      }
    }
  }

  // Which of the 16 keys at positions 16 chunk + i from `key` on are forbidden: bit 4 chunk + i. It serves boolean masks
  // that are not read by fours. The loop is not unrolled: its 16 addresses would take the registers of the scores.
  template <int STRIDE>
  DYNATTN_DEVICE u32 forbidden(int key) const {
    u32 bits = 0;
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int chunk = 0; chunk < 4; ++chunk) {
        const int at = key + i * STRIDE + key_at<STRIDE>(16 * chunk);
        if (at >= keys || row[at * key_stride] == 0) bits |= 1u << (4 * chunk + i);
      }
    }
    return bits;
  }
};

// A product of query and key, with the mask: scaled only where a bias is added, since a positive factor changes neither
// the choice nor, with the exponent's factor adapted, the weights. (A negative scale's sign is in the query already.)
template <MaskKind MASK>
DYNATTN_DEVICE float with_bias(float product, float bias, float scale) {
  if (bias == -INFINITY_F) return -INFINITY_F;  // whatever the product is: NaN under a mask stays there
  return IS_BIAS<MASK> ? multiply_add(product, scale, bias) : product;
}

// Masks a warp's tile of 16 queries (this thread's are `query` and `query + 8`) and 64 keys from `key0`.
template <class Element, MaskKind MASK, int STRIDE = 1>
DYNATTN_DEVICE void apply_mask(Scores& s, const ForwardParams& p, const Place& place, int query, int key0, int lane,
                               float scale) {
  constexpr bool BY_BITS = MASK == MaskKind::boolean && STRIDE > 1;
  const int first = key0 + key_at<STRIDE>(4 * (lane & 3));
  if constexpr (MASK != MaskKind::none) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const MaskRow<Element, MASK> mask(p, place, query + 8 * row);
      u32 forbidden = 0;
      if constexpr (BY_BITS) forbidden = mask.template forbidden<STRIDE>(first);
#pragma unroll
      for (int chunk = 0; chunk < 4; ++chunk) {
        float bias[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if constexpr (!BY_BITS) mask.template read<STRIDE>(first + key_at<STRIDE>(16 * chunk), bias);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (BY_BITS && (forbidden >> (4 * chunk + i) & 1)) bias[i] = -INFINITY_F;
          float& score = s[i >> 1][chunk][2 * row + (i & 1)];
          score = with_bias<MASK>(score, bias[i], scale);
        }
      }
    }
  }
  const int last[2] = {last_key(p, query), last_key(p, query + 8)};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first + key_at<STRIDE>(16 * chunk + 2 * half + (i & 1));
        if (key > last[i >> 1]) s[half][chunk][i] = -INFINITY_F;
      }
    }
  }
}

// Splits the scores of a warp's tile into those that the choice or the band keeps, and the others. Either part is written
// as the lower and the upper pair of every group, with -inf where an entry belongs to the other part. With TF32 (two words
// of metadata), whose operands store one of every two, it is written as the first and the second of every pair.
template <Pattern PATTERN, int STRIDE = 1, int WORDS = 1>
DYNATTN_DEVICE void split_by_choice_and_band(const Scores& s, const ForwardParams& p, int query, int key0, int lane,
                                             Survivors& lower, Survivors& upper, Survivors& dropped_lower,
                                             Survivors& dropped_upper) {
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float group[4] = {s[0][chunk][2 * row], s[0][chunk][2 * row + 1], s[1][chunk][2 * row],
                              s[1][chunk][2 * row + 1]};
      bool keep[4];
      choice_flags<PATTERN>(group, keep);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = key0 + key_at<STRIDE>(4 * (lane & 3)) + key_at<STRIDE>(16 * chunk + i);
        const bool kept = keep[i] || in_band(p, query + 8 * row, key);
        const bool in_upper = WORDS == 1 ? i >= 2 : i & 1;
        const int place = WORDS == 1 ? i & 1 : i >> 1;
        (in_upper ? upper : lower)[chunk][row][place] = kept ? group[i] : -INFINITY_F;
        (in_upper ? dropped_upper : dropped_lower)[chunk][row][place] = kept ? -INFINITY_F : group[i];
      }
    }
  }
}

}  // namespace dynattn
