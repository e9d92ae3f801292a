// Packs queries, keys and values into the order in which tiles read them, padded with zeros.
//
//     queries   [step of 32 dims][group of 16 queries][pair of dims][query] of pairs
//     keys      [key block][key][dim]: rows as they lie, filled up to whole tiles; only where they are not in place
//     values    [key block][32 places][tile of dims][dim][place], transposed
//
// Packing looks at every number, so that the kernel knows whether it may ignore NaN and overflow. A value that is NaN
// or infinite is packed as 0, since 0 times it would be NaN in a product that all queries share. Its key is marked, and
// the value is added only where the key is kept (forward.h).
#pragma once

#include "common/dtypes.h"
#include "tiles/lanes.h"
#include "tiles/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// A head's keys and values as the kernel reads them.
struct TileHead {
  const char* keys;         // the caller's
  int64_t key_stride;       // bytes
  const char* packed_keys;  // from key block packed_from on
  const char* values;       // packed
  const uint16_t* own_values;
  int64_t value_stride;     // numbers, of the caller's values
  const uint8_t* odd;       // [key]: 1 where a value is NaN or infinite
  float key_bound, value_bound;  // largest magnitudes; infinite where one is not finite
};

// The largest magnitude of numbers, as bits.
struct Largest {
  Words words = broadcast_words(0);

  void see(Words pairs) { words = max_halves(words, both(pairs, broadcast_words(0x7fff7fffu))); }
  float bound() const {
    alignas(64) uint32_t all[kLanes];
    store(all, words);
    uint32_t most = 0;
    for (uint32_t word : all) most = larger(most, larger(word & 0xffffu, word >> 16));
    return most < 0x7f80u ? from_bits(most << 16) : INFINITY;
  }
};

DYNATTN_INLINE const uint16_t* row_of(const char* head, int64_t row, int64_t stride) {
  return reinterpret_cast<const uint16_t*>(head) + row * stride;
}

// A key head of `base`, of those of all batches.
static const char* head_of(const NMForwardArgs& args, const void* base, const int64_t strides[3], int64_t head) {
  return element(base, head / args.kv_heads * strides[0] + head % args.kv_heads * strides[1], args.dtype);
}

static void see_row(const uint16_t* row, int64_t dim, Largest& largest) {
  for (int64_t d = 0; d < dim; d += kTileDepth) largest.see(load_numbers(row + d, smaller<int64_t>(kTileDepth, dim - d)));
}

// Keys of key blocks [first, last): all are looked at, and copied where they cannot be read in place. `to`: of the
// first block that is copied.
static float pack_key_blocks(const TilePlan& plan, const char* head, int64_t first, int64_t last, char* to) {
  const NMForwardArgs& args = *plan.args;
  const int64_t row_bytes = packed_key_bytes(plan), dim_bytes = args.head_dim * 2;
  Largest largest;
  for (int64_t block = first; block < last; block++) {
    const int64_t start = block * plan.key_block;
    for (int64_t i = 0; i < plan.key_block && start + i < args.kv_len; i++) {
      see_row(row_of(head, start + i, args.key_strides[2]), args.head_dim, largest);
    }
    if (block < plan.packed_from) continue;
    char* row = to + (block - larger(first, plan.packed_from)) * key_block_bytes(plan);
    for (int64_t i = 0; i < plan.padded; i++, row += row_bytes) {
      const bool inside = start + i < args.kv_len;
      if (inside) memcpy(row, row_of(head, start + i, args.key_strides[2]), static_cast<size_t>(dim_bytes));
      const int64_t filled = inside ? dim_bytes : 0;
      memset(row + filled, 0, static_cast<size_t>(row_bytes - filled));
    }
  }
  return largest.bound();
}

// Values of a key block.
struct ValueRows {
  const TilePlan& plan;
  const uint16_t* first;
  int64_t stride, keys;  // keys of the block that are there

  // Of a place; NULL where there is none.
  const uint16_t* at(int64_t place) const {
    const int64_t key = plan.key_at[place];
    return key < keys ? first + key * stride : nullptr;
  }
};

// Values of 32 places from `place` on one by one; those that are not finite become 0 and are marked.
static void pack_value_numbers(const ValueRows& values, int64_t place, uint16_t* to, uint8_t* odd) {
  const TilePlan& plan = values.plan;
  memset(to, 0, static_cast<size_t>(plan.dims * kTileBytes));
  for (int64_t i = 0; i < kTileDepth; i++) {
    const uint16_t* row = values.at(place + i);
    if (row == nullptr) continue;
    for (int64_t d = 0; d < plan.args->value_dim; d++) {
      const bool finite = (row[d] & 0x7f80u) != 0x7f80u;
      to[d * kTileDepth + i] = finite ? row[d] : uint16_t{0};
      if (!finite) odd[plan.key_at[place + i]] = 1;
    }
  }
}

// Values of 32 places: a word of a row is two dims, so that 16 even places' rows become pairs of dims of 16 places, 16
// odd places' likewise, and pairs of places are made of the two.
static void pack_value_words(const ValueRows& values, int64_t place, uint16_t* to, Largest& largest) {
  const TilePlan& plan = values.plan;
  for (int64_t d = 0; d < plan.args->value_dim; d += kTileDepth) {
    const int64_t dims = smaller<int64_t>(kTileDepth, plan.args->value_dim - d);
    Words halves[2][kLanes];
    for (int64_t i = 0; i < kTileDepth; i++) {
      const uint16_t* row = values.at(place + i);
      halves[i % 2][i / 2] = row != nullptr ? load_numbers(row + d, dims) : broadcast_words(0);
      largest.see(halves[i % 2][i / 2]);
    }
    transpose_words(halves[0]);
    transpose_words(halves[1]);
    uint32_t* row = reinterpret_cast<uint32_t*>(to + d * kTileDepth);
    const int64_t rows = smaller<int64_t>(kTileDepth, plan.dims * kTileRows - d);
    for (int64_t i = 0; i < rows / 2; i++, row += 2 * kLanes) {
      const Words even = halves[0][i], odd = halves[1][i];
      store(row, pair(both(even, broadcast_words(0xffffu)), odd));
      store(row + kLanes, either(shift_right<16>(even), both(odd, broadcast_words(0xffff0000u))));
    }
  }
}

// Values of key blocks [first, last), of which the first goes to `to` and `odd`.
static float pack_value_blocks(const TilePlan& plan, const char* head, int64_t first, int64_t last, char* to,
                               uint8_t* odd) {
  const NMForwardArgs& args = *plan.args;
  float bound = 0.0f;
  for (int64_t block = first; block < last; block++) {
    const int64_t start = block * plan.key_block, keys = smaller<int64_t>(plan.key_block, args.kv_len - start);
    const ValueRows values = {plan, row_of(head, start, args.value_strides[2]), args.value_strides[2], keys};
    uint8_t* const marks = odd + start - first * plan.key_block;
    char* part = to + (block - first) * value_block_bytes(plan);
    memset(marks, 0, static_cast<size_t>(keys));
    for (int64_t place = 0; place < plan.padded; place += kTileDepth, part += plan.dims * kTileBytes) {
      uint16_t* const packed = reinterpret_cast<uint16_t*>(part);
      Largest largest;
      pack_value_words(values, place, packed, largest);
      const float seen = largest.bound();
      if (!(seen < INFINITY)) pack_value_numbers(values, place, packed, marks);
      bound = larger(bound, seen);
    }
  }
  return bound;
}

// `count` queries, at most kQueries; others are 0. A negative scale turns their sign, which is exact.
static float pack_queries(const TilePlan& plan, const char* first, int64_t count, int groups, uint32_t* to) {
  const NMForwardArgs& args = *plan.args;
  const Words turn = broadcast_words(args.scale < 0 ? 0x80008000u : 0u);
  Largest largest;
  for (int64_t step = 0; step < plan.depth; step++) {
    const int64_t dims = smaller<int64_t>(kTileDepth, args.head_dim - step * kTileDepth);
    for (int64_t group = 0; group < groups; group++, to += kTileWords) {
      Words rows[kLanes];
      for (int64_t i = 0; i < kLanes; i++) {
        const int64_t query = group * kLanes + i;
        const uint16_t* row = row_of(first, smaller(query, count - 1), args.query_strides[2]) + step * kTileDepth;
        rows[i] = query < count ? flip(load_numbers(row, dims), turn) : broadcast_words(0);
        largest.see(rows[i]);
      }
      transpose_words(rows);
      for (int64_t i = 0; i < kLanes; i++) store(to + i * kLanes, rows[i]);
    }
  }
  return largest.bound();
}

}  // namespace dynattn::DYNATTN_NAMESPACE
