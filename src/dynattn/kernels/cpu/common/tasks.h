// The forward's tasks: query blocks, taken from one counter in the order of their key heads. A head's keys and values
// are packed by the threads that come to it first, a piece each; heads share a few slots of memory in turn. So there is
// no barrier, one long sequence keeps every thread busy, and memory does not grow with the number of heads.
//
// A worker knows how heads are packed, and computes the query blocks that a thread takes. It is a class with
//
//     using Plan        a call's geometry, with args, pack_steps, query_blocks and query_block
//     using Memory      where a packed head lies
//     using Seen        what packing has found out about a piece of a head
//     using Head        a packed head, as the kernels read it
//     static Memory lay_head(const Plan&, Arena&)           lays out the memory of one head
//     static Seen pack(const Plan&, head, step, Memory)     packs one piece of a head, of pack_steps
//     static Head open(const Plan&, head, Memory, Seen*)    the head, with what was seen of all its pieces
//     Worker(const Plan&, Arena&)                           lays out a thread's own memory
//     void run(const Head&, batch, index, first)            computes one query block of one head
#pragma once

#include <sched.h>

#include "common/arena.h"
#include "common/team.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Counters only grow, through all heads that a slot serves, so that none is ever reset under another thread.
struct alignas(64) Slot {
  int64_t packing;  // packing steps handed out
  int64_t packed;   // packing steps done
  int64_t done;     // tasks done
};

template <class Worker>
struct Job {
  const typename Worker::Plan* plan;
  char* memory;
  Slot* slots;
  typename Worker::Seen* seen;  // [slot][packing step]
  int64_t slot_count, slot_bytes, scratch_offset, scratch_bytes;
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
template <class Worker>
static typename Worker::Head pack_head(const Job<Worker>& job, int64_t head) {
  const typename Worker::Plan& plan = *job.plan;
  const int64_t index = head % job.slot_count, turn = head / job.slot_count;
  Slot& slot = job.slots[index];
  wait_for(slot.done, turn * job.tasks_per_head);  // the slot's last head is no longer read

  Arena arena = {reinterpret_cast<uintptr_t>(job.memory + index * job.slot_bytes), 0};
  const typename Worker::Memory memory = Worker::lay_head(plan, arena);
  typename Worker::Seen* const seen = job.seen + index * plan.pack_steps;
  const int64_t first = turn * plan.pack_steps, end = first + plan.pack_steps;
  for (int64_t step = read(slot.packing); step < end;) {
    if (!__atomic_compare_exchange_n(&slot.packing, &step, step + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      continue;
    seen[step - first] = Worker::pack(plan, head, step - first, memory);
    increment(slot.packed);
    step = read(slot.packing);
  }
  wait_for(slot.packed, end);
  return Worker::open(plan, head, memory, seen);
}

template <class Worker>
static void work(void* data) {
  Job<Worker>& job = *static_cast<Job<Worker>*>(data);
  const typename Worker::Plan& plan = *job.plan;
  const NMForwardArgs& args = *plan.args;
  char* own = job.memory + job.scratch_offset + increment(job.next_thread) * job.scratch_bytes;
  Arena arena = {reinterpret_cast<uintptr_t>(own), 0};
  Worker worker(plan, arena);
  const int64_t heads_per_kv = args.heads / args.kv_heads;
  const int64_t tasks = job.heads * job.tasks_per_head;
  typename Worker::Head packed = {};
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
  Job<Worker> job = {};
  job.plan = &plan;
  job.heads = args.batch * args.kv_heads;
  job.tasks_per_head = plan.query_blocks * (args.heads / args.kv_heads);
  const int threads = useful_threads(args, job.heads * job.tasks_per_head);

  Arena slot = {0, 0}, scratch = {0, 0};
  Worker::lay_head(plan, slot);
  job.slot_bytes = larger<int64_t>(slot.used, 64);
  const int64_t affordable = larger<int64_t>(2, kSlotBytes / job.slot_bytes);
  job.slot_count = smaller(job.heads, smaller<int64_t>(2 * threads + 1, affordable));
  { const Worker measured(plan, scratch); }
  job.scratch_bytes = scratch.used;

  Arena all = {0, 0};
  all.take<char>(job.slot_count * job.slot_bytes);
  job.scratch_offset = all.used;
  all.take<char>(threads * job.scratch_bytes);
  const int64_t slots_offset = all.used;
  all.take<Slot>(job.slot_count);
  const int64_t seen_offset = all.used;
  all.take<typename Worker::Seen>(job.slot_count * plan.pack_steps);

  job.memory = static_cast<char*>(take_workspace(static_cast<size_t>(all.used)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  job.slots = reinterpret_cast<Slot*>(job.memory + slots_offset);
  job.seen = reinterpret_cast<typename Worker::Seen*>(job.memory + seen_offset);
  memset(job.slots, 0, static_cast<size_t>(job.slot_count) * sizeof(Slot));
  run_team(args.parallel, threads, work<Worker>, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
