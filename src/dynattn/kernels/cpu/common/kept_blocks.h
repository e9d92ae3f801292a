// Finds which blocks a run of keys meets, for methods that keep blocks of keys for blocks of queries.
#pragma once

#include "dynattn_cpu.h"
#include "simd/simd.h"

namespace dynattn::DYNATTN_NAMESPACE {

enum class KeptBlocks : uint8_t { kNone, kSome, kAll };

// The columns of one head's blocks that the keys of a tile meet.
struct BlockColumns {
  const uint8_t* kept;    // the first of them, for query 0; NULL: no blocks were chosen, and everything is kept
  int64_t stride, count;  // blocks of a row, and of these columns
  int64_t queries, size;  // of a block: its queries, its keys
};

static inline BlockColumns block_columns(const NMForwardArgs& args, int64_t batch, int64_t head, int64_t first_key,
                                         int64_t keys) {
  if (args.blocks == nullptr || keys <= 0) return {nullptr, 0, 0, 1, 1};
  const int64_t size = args.block_size, columns = ceil_div(args.kv_len, size);
  const int64_t rows = ceil_div(args.q_len, args.block_queries);
  const int64_t first = first_key / size;
  const uint8_t* blocks = args.blocks + (batch * args.heads + head) * rows * columns;
  return {blocks + first, columns, (first_key + keys - 1) / size - first + 1, args.block_queries, size};
}

// The blocks of one query in these columns, `count` of them.
DYNATTN_INLINE const uint8_t* block_row(const BlockColumns& columns, int64_t query) {
  return columns.kept + query / columns.queries * columns.stride;
}

// How many of these columns' blocks queries [first, last] keep.
DYNATTN_INLINE KeptBlocks kept_blocks(const BlockColumns& columns, int64_t first, int64_t last) {
  if (columns.kept == nullptr) return KeptBlocks::kAll;
  bool any = false, all = true;
  const uint8_t* row = block_row(columns, first);
  for (int64_t query = first / columns.queries * columns.queries; query <= last;
       query += columns.queries, row += columns.stride) {
    for (int64_t i = 0; i < columns.count; i++) {
      any |= row[i] != 0;
      all &= row[i] != 0;
    }
  }
  return all ? KeptBlocks::kAll : any ? KeptBlocks::kSome : KeptBlocks::kNone;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
