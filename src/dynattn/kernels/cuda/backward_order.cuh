// The order in which a block of the backward's kernels walks over the pairs: a tile of keys, and all queries that may
// attend to it.
#pragma once

#include "backward_params.cuh"
#include "mask.cuh"

namespace dynattn {

struct BackwardPlace {
  int part, split, batch, kv_head;
};

// The query tiles of all heads that attend to a tile of keys, one after another, head by head.
struct QueryTiles {
  int first, end;  // the query tiles of each head: the first, and the one after the last
  int head, end_head, tile;

  DYNATTN_DEVICE QueryTiles(const ForwardParams& p, int kv_head, int key0, int queries) {
    const int first_query = p.causal ? key0 - (p.kv_len - p.q_len) : 0, group = p.heads / p.kv_heads;
    first = first_query > 0 ? first_query / queries : 0;
    end = (p.q_len + queries - 1) / queries;
    head = kv_head * group;
    end_head = first < end ? head + group : head;
    tile = first;
  }
  DYNATTN_DEVICE bool more() const { return head < end_head; }
  DYNATTN_DEVICE void advance() {
    if (++tile < end) return;
    tile = first;
    ++head;
  }
  DYNATTN_DEVICE Place place(const ForwardParams& p, const BackwardPlace& block, int queries) const {
    const long long pair = static_cast<long long>(block.batch) * p.heads + head;
    return {block.batch, head, block.kv_head, tile * queries, pair * p.q_len + tile * queries};
  }
};

}  // namespace dynattn
