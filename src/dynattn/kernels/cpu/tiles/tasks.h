// The tasks of a call: blocks of queries, taken from one counter in the order of their key heads. A head's keys and
// values are packed by the threads that come to it first, a piece each; heads share a few slots of memory in turn. So
// there is no barrier, one long sequence keeps every thread busy, and memory does not grow with the number of heads.
#pragma once

#include <sched.h>

#include "plan.h"
#include "team.h"
#include "tiles/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Counters only grow, through all heads that a slot serves, so that none is ever reset under another thread.
struct alignas(64) TileSlotState {
  int64_t packing;  // packing steps handed out
  int64_t packed;   // packing steps done
  int64_t done;     // tasks done
};

struct TileJob {
  const TilePlan* plan;
  char* memory;
  TileSlotState* slots;
  Bounds* bounds;  // [slot][packing step]
  int64_t slot_count, slot_bytes, values_offset, odd_offset, scratch_offset, scratch_bytes;
  int64_t heads, tasks_per_head;
  int64_t next_task, next_thread;
};

DYNATTN_INLINE void wait_until(const int64_t& counter, int64_t target) {
  for (int spins = 0; read(counter) < target; spins++) {
    if (spins >= 1000) sched_yield();
  }
}

static const char* head_of(const NMForwardArgs& args, const void* base, const int64_t strides[3], int64_t head) {
  return element(base, head / args.kv_heads * strides[0] + head % args.kv_heads * strides[1], args.dtype);
}

// Packs what is left to hand out of a head, then waits for the pieces of others.
static TileHead pack_tile_head(const TileJob& job, int64_t head) {
  const TilePlan& plan = *job.plan;
  const NMForwardArgs& args = *plan.args;
  const int64_t index = head % job.slot_count, turn = head / job.slot_count;
  TileSlotState& slot = job.slots[index];
  wait_until(slot.done, turn * job.tasks_per_head);  // the slot's last head is no longer read

  char* const memory = job.memory + index * job.slot_bytes;
  char* const values = memory + job.values_offset;
  uint8_t* const odd = reinterpret_cast<uint8_t*>(memory + job.odd_offset);
  Bounds* const bounds = job.bounds + index * plan.pack_steps;
  const char* const own_keys = head_of(args, args.key, args.key_strides, head);
  const char* const own_values = head_of(args, args.value, args.value_strides, head);
  const int64_t first_step = turn * plan.pack_steps, end = first_step + plan.pack_steps;
  for (int64_t step = read(slot.packing); step < end;) {
    if (!__atomic_compare_exchange_n(&slot.packing, &step, step + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      continue;
    const int64_t first = (step - first_step) * plan.step_blocks;
    const int64_t last = smaller(first + plan.step_blocks, plan.key_blocks);
    bounds[step - first_step] = {pack_key_blocks(plan, own_keys, first, last, memory),
                                 pack_value_blocks(plan, own_values, first, last, values, odd)};
    count(slot.packed);
    step = read(slot.packing);
  }
  wait_until(slot.packed, end);

  TileHead packed = {own_keys, args.key_strides[2] * 2, memory, values, reinterpret_cast<const uint16_t*>(own_values),
                     args.value_strides[2], odd, 0.0f, 0.0f};
  for (int64_t step = 0; step < plan.pack_steps; step++) {
    packed.key_bound = larger(packed.key_bound, bounds[step].keys);
    packed.value_bound = larger(packed.value_bound, bounds[step].values);
  }
  return packed;
}

static void run_tile_tasks(void* data) {
  TileJob& job = *static_cast<TileJob*>(data);
  const TilePlan& plan = *job.plan;
  const NMForwardArgs& args = *plan.args;
  char* const own = job.memory + job.scratch_offset + count(job.next_thread) * job.scratch_bytes;
  Layouter layouter = {reinterpret_cast<uintptr_t>(own), 0};
  const TileScratch scratch = lay_tile_scratch(plan, layouter);
  Engine engine;
  const int64_t group = args.heads / args.kv_heads, tasks = job.heads * job.tasks_per_head;
  TileHead packed = {};
  int64_t packed_head = -1;
  for (int64_t task = count(job.next_task); task < tasks; task = count(job.next_task)) {
    const int64_t head = task / job.tasks_per_head, part = task % job.tasks_per_head;
    if (head != packed_head) packed = pack_tile_head(job, head);
    packed_head = head;
    const int64_t block = plan.query_blocks - 1 - part / group;  // causal blocks grow with their number: longest first
    const int64_t index = head % args.kv_heads * group + part % group;
    const int64_t end = smaller((block + 1) * plan.query_block, args.q_len);
    for (int64_t first = block * plan.query_block; first < end; first += kQueries) {
      run_queries(plan, packed, scratch, engine, head / args.kv_heads, index, first,
                  smaller<int64_t>(kQueries, end - first));
    }
    count(job.slots[head % job.slot_count].done);
  }
}

// Memory for packed heads stays below this, except that two slots are always there.
constexpr int64_t kTileSlotBytes = int64_t{64} << 20;

// All tasks of a call, for at least one query.
static int32_t run_tiles(const TilePlan& plan) {
  const NMForwardArgs& args = *plan.args;
  TileJob job = {};
  job.plan = &plan;
  job.heads = args.batch * args.kv_heads;
  job.tasks_per_head = plan.query_blocks * (args.heads / args.kv_heads);
  const int threads = useful_threads(args, job.heads * job.tasks_per_head);

  Layouter slot = {0, 0};
  slot.take<char>((plan.key_blocks - plan.packed_from) * key_block_bytes(plan));
  job.values_offset = slot.used;
  slot.take<char>(plan.key_blocks * value_block_bytes(plan));
  job.odd_offset = slot.used;
  slot.take<uint8_t>(args.kv_len);
  job.slot_bytes = larger<int64_t>(slot.used, 64);
  const int64_t affordable = larger<int64_t>(2, kTileSlotBytes / job.slot_bytes);
  job.slot_count = smaller(job.heads, smaller<int64_t>(2 * threads + 1, affordable));
  Layouter scratch = {0, 0};
  lay_tile_scratch(plan, scratch);
  job.scratch_bytes = scratch.used;

  Layouter all = {0, 0};
  all.take<char>(job.slot_count * job.slot_bytes);
  job.scratch_offset = all.used;
  all.take<char>(threads * job.scratch_bytes);
  const int64_t slots_offset = all.used;
  all.take<TileSlotState>(job.slot_count);
  const int64_t bounds_offset = all.used;
  all.take<Bounds>(job.slot_count * plan.pack_steps);

  job.memory = static_cast<char*>(take_workspace(static_cast<size_t>(all.used)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  job.slots = reinterpret_cast<TileSlotState*>(job.memory + slots_offset);
  job.bounds = reinterpret_cast<Bounds*>(job.memory + bounds_offset);
  memset(job.slots, 0, static_cast<size_t>(job.slot_count) * sizeof(TileSlotState));
  run_team(args.parallel, threads, run_tile_tasks, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
