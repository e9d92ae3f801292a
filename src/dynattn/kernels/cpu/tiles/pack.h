// Packs queries, keys and values into the order in which tiles read them, padded with zeros.
//
//     queries   [step of 32 dims][group of 16 queries][pair of dims][query] of pairs
//     keys      [key block][key][dim]: rows as they lie, filled up to whole tiles; only where they are not in place
//     values    [key block][32 keys][tile of dims][dim][key], transposed
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
  uint32_t bits = 0;

  void see(Words pairs) { words = max_halves(words, both(pairs, broadcast_words(0x7fff7fffu))); }
  void see(uint16_t number) { bits = larger<uint32_t>(bits, number & 0x7fffu); }
  float bound() const {
    alignas(64) uint32_t all[kLanes];
    store(all, words);
    uint32_t most = bits;
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
  int64_t d = 0;
  for (; d + kTileDepth <= dim; d += kTileDepth) largest.see(load_words(row + d));
  for (; d < dim; d++) largest.see(row[d]);
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

// 32 keys' values one by one, `count` of which are there; those that are not finite become 0 and are marked.
static void pack_value_numbers(const TilePlan& plan, const uint16_t* values, int64_t stride, int64_t count,
                               uint16_t* to, uint8_t* odd) {
  memset(to, 0, static_cast<size_t>(plan.dims * kTileBytes));
  for (int64_t key = 0; key < count; key++) {
    for (int64_t d = 0; d < plan.args->value_dim; d++) {
      const uint16_t number = values[key * stride + d];
      const bool finite = (number & 0x7f80u) != 0x7f80u;
      to[d * kTileDepth + key] = finite ? number : uint16_t{0};
      if (!finite) odd[key] = 1;
    }
  }
}

// 32 keys' values, all of them there: two dims of 16 keys at a time are gathered as pairs, and pairs of keys made of
// them.
static void pack_value_words(const TilePlan& plan, const uint16_t* values, int64_t stride, uint16_t* to,
                             Largest& largest) {
  const int64_t dim = plan.args->value_dim, bytes = stride * 2;
  for (int64_t d = 0; d + 1 < dim; d += 2) {
    const char* base = reinterpret_cast<const char*>(values + d);
    const Words even = gather_words(base, 2 * bytes), odd = gather_words(base + bytes, 2 * bytes);
    largest.see(even);
    largest.see(odd);
    uint32_t* row = reinterpret_cast<uint32_t*>(to + d * kTileDepth);
    store(row, pair(both(even, broadcast_words(0xffffu)), odd));
    store(row + kLanes, either(shift_right<16>(even), both(odd, broadcast_words(0xffff0000u))));
  }
  const int64_t rest = dim % 2 ? dim - 1 : dim;  // the row of the last of an odd number, and rows of padding
  memset(to + rest * kTileDepth, 0, static_cast<size_t>((plan.dims * kTileRows - rest) * kTileDepth * 2));
  for (int64_t key = 0; key < kTileDepth && dim % 2; key++) {
    const uint16_t number = values[key * stride + rest];
    largest.see(number);
    to[rest * kTileDepth + key] = number;
  }
}

// Values of key blocks [first, last), of which the first goes to `to` and `odd`.
static float pack_value_blocks(const TilePlan& plan, const char* head, int64_t first, int64_t last, char* to,
                               uint8_t* odd) {
  const NMForwardArgs& args = *plan.args;
  const int64_t stride = args.value_strides[2];
  const bool near = stride >= 0 && stride < (int64_t{1} << 24);  // a gather's offsets fit 32 bits
  float bound = 0.0f;
  for (int64_t block = first; block < last; block++) {
    char* part = to + (block - first) * value_block_bytes(plan);
    for (int64_t i = 0; i < plan.padded; i += kTileDepth, part += plan.dims * kTileBytes) {
      const int64_t start = block * plan.key_block + i;
      const int64_t count =
          larger<int64_t>(0, smaller(smaller<int64_t>(kTileDepth, plan.key_block - i), args.kv_len - start));
      const uint16_t* values = row_of(head, start, stride);
      uint16_t* packed = reinterpret_cast<uint16_t*>(part);
      uint8_t* const marks = odd + start - first * plan.key_block;
      Largest largest;
      memset(marks, 0, static_cast<size_t>(count));
      if (count == kTileDepth && near) {
        pack_value_words(plan, values, stride, packed, largest);
      } else {
        for (int64_t key = 0; key < count; key++) see_row(values + key * stride, args.value_dim, largest);
        pack_value_numbers(plan, values, stride, count, packed, marks);
      }
      const float seen = largest.bound();
      if (!(seen < INFINITY)) pack_value_numbers(plan, values, stride, count, packed, marks);
      bound = larger(bound, seen);
    }
  }
  return bound;
}

// `count` queries, at most kQueries; others are 0. A negative scale turns their sign, which is exact.
static float pack_queries(const TilePlan& plan, const char* first, int64_t count, int groups, uint32_t* to) {
  const NMForwardArgs& args = *plan.args;
  const uint32_t turn = args.scale < 0 ? 0x80008000u : 0u;
  memset(to, 0, static_cast<size_t>(plan.depth * groups * kTileBytes));
  Largest largest;
  for (int64_t i = 0; i < count; i++) {
    const uint16_t* row = row_of(first, i, args.query_strides[2]);
    see_row(row, args.head_dim, largest);
    for (int64_t d = 0; d < args.head_dim; d += 2) {
      const uint32_t high = d + 1 < args.head_dim ? row[d + 1] : 0u;
      const int64_t tile = d / kTileDepth * groups + i / kLanes;
      to[tile * kTileWords + d % kTileDepth / 2 * kLanes + i % kLanes] = (row[d] | high << 16) ^ turn;
    }
  }
  return largest.bound();
}

}  // namespace dynattn::DYNATTN_NAMESPACE
