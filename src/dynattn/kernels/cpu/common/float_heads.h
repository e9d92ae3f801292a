// Packs the keys and values of a head as floats, for tasks.h.
#pragma once

#include "common/query_block.h"
#include "common/tasks.h"

namespace dynattn::DYNATTN_NAMESPACE {

// The part that workers share whose plan is a Plan, or derived from one.
struct FloatHeads {
  using Head = PackedHead;

  struct Memory {
    float* keys;
    float* values;
  };

  struct Seen {
    float keys, values;  // largest magnitudes; infinite where one is not finite
  };

  static Memory lay_head(const Plan& plan, Arena& arena) {
    const int64_t keys = plan.tiles * plan.tile;
    Memory memory;
    memory.keys = arena.take<float>(keys * plan.args->head_dim);
    memory.values = arena.take<float>((plan.value_in_place ? plan.tile : keys) * value_width(plan));
    return memory;
  }

  static Seen pack(const Plan& plan, int64_t head, int64_t step, const Memory& memory) {
    const NMForwardArgs& args = *plan.args;
    const char* key = kv_head(args, args.key, args.key_strides, head);
    const char* value = kv_head(args, args.value, args.value_strides, head);
    const int64_t first = step * plan.chunk_tiles, last = smaller(first + plan.chunk_tiles, plan.tiles);
    return {pack_keys(plan, key, first, last, memory.keys + first * plan.tile * args.head_dim),
            pack_values(plan, value, first, last, memory.values)};
  }

  static Head open(const Plan& plan, int64_t head, const Memory& memory, const Seen* seen) {
    const NMForwardArgs& args = *plan.args;
    const char* value = kv_head(args, args.value, args.value_strides, head);
    Head packed = {0,    memory.keys, plan.value_in_place ? reinterpret_cast<const float*>(value) : memory.values,
                   memory.values, true, 0.0f};
    for (int64_t step = 0; step < plan.pack_steps; step++) {
      packed.key_bound = larger(packed.key_bound, seen[step].keys);
      packed.finite &= seen[step].keys < INFINITY && seen[step].values < INFINITY;
    }
    return packed;
  }
};

// A worker for tasks.h: memory of a thread as `lay` lays it, and a block of queries as `compute` computes it.
template <class P, class Scratch, Scratch (*lay)(const P&, Arena&),
          void (*compute)(const P&, const PackedHead&, const Scratch&, int64_t, int64_t, int64_t)>
struct QueryBlocks : FloatHeads {
  using Plan = P;
  const P& plan;
  const Scratch scratch;

  QueryBlocks(const P& call, Arena& arena) : plan(call), scratch(lay(call, arena)) {}

  void run(const PackedHead& packed, int64_t batch, int64_t index, int64_t first) const {
    compute(plan, packed, scratch, batch, index, first);
  }
};

}  // namespace dynattn::DYNATTN_NAMESPACE
