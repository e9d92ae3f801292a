// The forward's tasks: query blocks, taken from one counter in the order of their key heads. A head's keys and values
// are packed by the threads that come to it first, a piece each; heads share a few slots of memory in turn. So there is
// no barrier, one long sequence keeps every thread busy, and memory does not grow with the number of heads.
//
// A worker computes the query blocks that a thread takes. It is a class with
//
//     using Plan                                        a dynattn Plan, or derived from it
//     Worker(const Plan&, Arena&)                       lays out a thread's own memory
//     void run(const PackedHead&, batch, index, first)  computes one query block of one head
#pragma once

#include <sched.h>

#include "common/pack.h"
#include "common/query_block.h"
#include "common/team.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Counters only grow, through all heads that a slot serves, so that none is ever reset under another thread.
struct alignas(64) Slot {
  int64_t packing;  // packing steps handed out
  int64_t packed;   // packing steps done
  int64_t done;     // tasks done
};

struct Job {
  const Plan* plan;
  char* memory;
  Slot* slots;
  float* bounds;  // [slot][packing step][keys, values]
  int64_t slot_count, slot_bytes, value_offset, scratch_offset, scratch_bytes;
  int64_t heads, tasks_per_head;
  int64_t next_task;
  int64_t next_thread;
};

DYNATTN_INLINE void wait_for(const int64_t& counter, int64_t target) {
  for (int spins = 0; read(counter) < target; spins++) {
    if (spins >= 1000) sched_yield();
  }
}

// Packs what is left to hand out of a head's keys and values, then waits for the pieces of others.
static PackedHead pack_head(const Job& job, int64_t head) {
  const Plan& plan = *job.plan;
  const NMForwardArgs& args = *plan.args;
  const int64_t index = head % job.slot_count, turn = head / job.slot_count;
  Slot& slot = job.slots[index];
  wait_for(slot.done, turn * job.tasks_per_head);  // the slot's last head is no longer read

  char* memory = job.memory + index * job.slot_bytes;
  float* keys = reinterpret_cast<float*>(memory);
  float* values = reinterpret_cast<float*>(memory + job.value_offset);
  float* bounds = job.bounds + index * plan.pack_steps * 2;
  const char* key = kv_head(args, args.key, args.key_strides, head);
  const char* value = kv_head(args, args.value, args.value_strides, head);

  const int64_t first_step = turn * plan.pack_steps, end = first_step + plan.pack_steps;
  for (int64_t step = read(slot.packing); step < end;) {
    if (!__atomic_compare_exchange_n(&slot.packing, &step, step + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      continue;
    const int64_t first = (step - first_step) * plan.chunk_tiles;
    const int64_t last = smaller(first + plan.chunk_tiles, plan.tiles);
    bounds[(step - first_step) * 2] = pack_keys(plan, key, first, last, keys + first * plan.tile * args.head_dim);
    bounds[(step - first_step) * 2 + 1] = pack_values(plan, value, first, last, values);
    increment(slot.packed);
    step = read(slot.packing);
  }
  wait_for(slot.packed, end);

  PackedHead packed = {0,      keys, plan.value_in_place ? reinterpret_cast<const float*>(value) : values,
                       values, true, 0.0f};
  for (int64_t step = 0; step < plan.pack_steps; step++) {
    packed.key_bound = larger(packed.key_bound, bounds[step * 2]);
    packed.finite &= bounds[step * 2] < INFINITY && bounds[step * 2 + 1] < INFINITY;
  }
  return packed;
}

template <class Worker>
static void work(void* data) {
  Job& job = *static_cast<Job*>(data);
  const Plan& plan = *job.plan;
  const NMForwardArgs& args = *plan.args;
  char* own = job.memory + job.scratch_offset + increment(job.next_thread) * job.scratch_bytes;
  Arena arena = {reinterpret_cast<uintptr_t>(own), 0};
  Worker worker(static_cast<const typename Worker::Plan&>(plan), arena);
  const int64_t heads_per_kv = args.heads / args.kv_heads;
  const int64_t tasks = job.heads * job.tasks_per_head;
  PackedHead packed = {};
  int64_t packed_head = -1;
  for (int64_t task = increment(job.next_task); task < tasks; task = increment(job.next_task)) {
    const int64_t head = task / job.tasks_per_head, part = task % job.tasks_per_head;
    if (head != packed_head) packed = pack_head(job, head);
    packed_head = head;
    const int64_t block =
        plan.query_blocks - 1 - part / heads_per_kv;  // causal blocks grow with their number: longest first
    const int64_t query_head = head % args.kv_heads * heads_per_kv + part % heads_per_kv;
    worker.run(packed, head / args.kv_heads, query_head, block * plan.query_block);
    increment(job.slots[head % job.slot_count].done);
  }
}

// Memory for packed heads stays below this, except that two slots are always there.
constexpr int64_t kSlotBytes = int64_t{64} << 20;

// All query blocks of a call, for at least one query.
template <class Worker>
static int32_t run_heads(const typename Worker::Plan& plan) {
  const NMForwardArgs& args = *plan.args;
  Job job = {};
  job.plan = &plan;
  job.heads = args.batch * args.kv_heads;
  job.tasks_per_head = plan.query_blocks * (args.heads / args.kv_heads);
  const int threads = useful_threads(args, job.heads * job.tasks_per_head);

  const int64_t keys = plan.tiles * plan.tile;
  Arena slot = {0, 0};
  slot.take<float>(keys * args.head_dim);
  job.value_offset = slot.used;
  slot.take<float>((plan.value_in_place ? plan.tile : keys) * value_width(plan));
  job.slot_bytes = larger<int64_t>(slot.used, 64);
  const int64_t affordable = larger<int64_t>(2, kSlotBytes / job.slot_bytes);
  job.slot_count = smaller(job.heads, smaller<int64_t>(2 * threads + 1, affordable));
  Arena scratch = {0, 0};
  Worker measured(plan, scratch);
  job.scratch_bytes = scratch.used;

  Arena all = {0, 0};
  all.take<char>(job.slot_count * job.slot_bytes);
  job.scratch_offset = all.used;
  all.take<char>(threads * job.scratch_bytes);
  const int64_t slots_offset = all.used;
  all.take<Slot>(job.slot_count);
  const int64_t bounds_offset = all.used;
  all.take<float>(job.slot_count * plan.pack_steps * 2);

  job.memory = static_cast<char*>(take_workspace(static_cast<size_t>(all.used)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  job.slots = reinterpret_cast<Slot*>(job.memory + slots_offset);
  job.bounds = reinterpret_cast<float*>(job.memory + bounds_offset);
  memset(job.slots, 0, static_cast<size_t>(job.slot_count) * sizeof(Slot));
  run_team(args.parallel, threads, work<Worker>, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
