// The forward's tasks: query blocks, taken from one counter in the order of their key heads. A head's keys and values
// are packed by the threads that come to it first, a piece each; heads share a few slots of memory in turn. So there is
// no barrier, one long sequence keeps every thread busy, and memory does not grow with the number of heads. Calls of
// different lengths share the counter and the slots, so that threads are as busy with many short ones as with one.
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

// A head of one of the calls, and how many steps and tasks its slot has served before it.
struct HeadPlace {
  int64_t call, head;  // head within the call
  int64_t first_task;  // among those of all heads
  int64_t first_step, first_done;
};

template <class Worker>
struct Job {
  const typename Worker::Plan* const* plans;  // [call]
  char* memory;
  Slot* slots;
  HeadPlace* heads;             // of all calls, and one behind them
  typename Worker::Seen* seen;  // [slot][packing step]
  int64_t calls, head_count, tasks;
  int64_t slot_count, slot_bytes, slot_steps, scratch_offset, scratch_bytes;
  int threads;
  int64_t next_task;
  int64_t next_thread;
};

template <class Plan>
static int64_t heads_of(const Plan& plan) {
  return plan.args->batch * plan.args->kv_heads;
}

template <class Plan>
static int64_t tasks_per_head(const Plan& plan) {
  return plan.query_blocks * (plan.args->heads / plan.args->kv_heads);
}

DYNATTN_INLINE void wait_for(const int64_t& counter, int64_t target) {
  for (int spins = 0; read(counter) < target; spins++) {
    if (spins >= 1000) sched_yield();
  }
}

// Packs what is left to hand out of a head's keys and values, then waits for the pieces of others.
template <class Worker>
static typename Worker::Head pack_head(const Job<Worker>& job, int64_t number) {
  const HeadPlace& place = job.heads[number];
  const typename Worker::Plan& plan = *job.plans[place.call];
  const int64_t index = number % job.slot_count;
  Slot& slot = job.slots[index];
  wait_for(slot.done, place.first_done);  // the slot's last head is no longer read

  Arena arena = {reinterpret_cast<uintptr_t>(job.memory + index * job.slot_bytes), 0};
  const typename Worker::Memory memory = Worker::lay_head(plan, arena);
  typename Worker::Seen* const seen = job.seen + index * job.slot_steps;
  const int64_t first = place.first_step, end = first + plan.pack_steps;
  for (int64_t step = read(slot.packing); step < end;) {
    if (!__atomic_compare_exchange_n(&slot.packing, &step, step + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      continue;
    seen[step - first] = Worker::pack(plan, place.head, step - first, memory);
    increment(slot.packed);
    step = read(slot.packing);
  }
  wait_for(slot.packed, end);
  return Worker::open(plan, place.head, memory, seen);
}

// Tasks are handed out in order, so that a thread meets the calls one after another and lays out its memory for each.
template <class Worker>
static void work(void* data) {
  Job<Worker>& job = *static_cast<Job<Worker>*>(data);
  const int64_t thread = increment(job.next_thread);
  if (thread >= job.threads) return;  // a team that serves another job too may be larger
  char* own = job.memory + job.scratch_offset + thread * job.scratch_bytes;
  int64_t number = 0;
  for (int64_t task = increment(job.next_task); task < job.tasks;) {
    while (job.heads[number + 1].first_task <= task) number++;
    const int64_t call = job.heads[number].call;
    const typename Worker::Plan& plan = *job.plans[call];
    const NMForwardArgs& args = *plan.args;
    const int64_t heads_per_kv = args.heads / args.kv_heads;
    Arena arena = {reinterpret_cast<uintptr_t>(own), 0};
    Worker worker(plan, arena);
    typename Worker::Head packed = {};
    for (int64_t packed_head = -1; task < job.tasks; task = increment(job.next_task)) {
      while (job.heads[number + 1].first_task <= task) number++;
      if (job.heads[number].call != call) break;
      if (number != packed_head) packed = pack_head(job, number);
      packed_head = number;
      const int64_t head = job.heads[number].head, part = task - job.heads[number].first_task;
      const int64_t block =
          plan.query_blocks - 1 - part / heads_per_kv;  // causal blocks grow with their number: longest first
      const int64_t query_head = head % args.kv_heads * heads_per_kv + part % heads_per_kv;
      worker.run(packed, head / args.kv_heads, query_head, block * plan.query_block);
      increment(job.slots[number % job.slot_count].done);
    }
  }
}

// Memory for packed heads stays below this, except that two slots are always there.
constexpr int64_t kSlotBytes = int64_t{64} << 20;

// Where every head's turn in its slot begins.
template <class Worker>
static void place_heads(const Job<Worker>& job) {
  int64_t number = 0, task = 0;
  for (int64_t call = 0; call < job.calls; call++) {
    const typename Worker::Plan& plan = *job.plans[call];
    for (int64_t head = 0; head < heads_of(plan); head++, number++) {
      HeadPlace place = {call, head, task, 0, 0};
      if (number >= job.slot_count) {
        const HeadPlace& before = job.heads[number - job.slot_count];
        place.first_step = before.first_step + job.plans[before.call]->pack_steps;
        place.first_done = before.first_done + tasks_per_head(*job.plans[before.call]);
      }
      job.heads[number] = place;
      task += tasks_per_head(plan);
    }
  }
  job.heads[number] = {job.calls, 0, task, 0, 0};
}

// Takes the memory of all query blocks of some calls, each for at least one query, and prepares work<Worker>. The job
// must not be moved afterwards. return_workspace(job.memory) ends it.
template <class Worker>
static int32_t open_heads(Job<Worker>& job, const typename Worker::Plan* const* plans, int64_t calls) {
  job.plans = plans, job.calls = calls;
  Arena slot = {0, 0};
  double products = 0;
  for (int64_t i = 0; i < calls; i++) {
    const typename Worker::Plan& plan = *plans[i];
    Arena one = {0, 0}, scratch = {0, 0};
    Worker::lay_head(plan, one);
    slot.used = larger(slot.used, one.used);
    { const Worker measured(plan, scratch); }
    job.scratch_bytes = larger(job.scratch_bytes, scratch.used);
    job.slot_steps = larger<int64_t>(job.slot_steps, plan.pack_steps);
    job.head_count += heads_of(plan);
    job.tasks += heads_of(plan) * tasks_per_head(plan);
    products += products_of(*plan.args);
  }
  job.threads = useful_threads(plans[0]->args->parallel, products, plans[0]->args->threads, job.tasks);
  job.slot_bytes = larger<int64_t>(slot.used, 64);
  const int64_t affordable = larger<int64_t>(2, kSlotBytes / job.slot_bytes);
  job.slot_count = smaller(job.head_count, smaller<int64_t>(2 * job.threads + 1, affordable));

  Arena all = {0, 0};
  all.take<char>(job.slot_count * job.slot_bytes);
  job.scratch_offset = all.used;
  all.take<char>(job.threads * job.scratch_bytes);
  const int64_t slots_offset = all.used;
  all.take<Slot>(job.slot_count);
  const int64_t heads_offset = all.used;
  all.take<HeadPlace>(job.head_count + 1);
  const int64_t seen_offset = all.used;
  all.take<typename Worker::Seen>(job.slot_count * job.slot_steps);

  job.memory = static_cast<char*>(take_workspace(static_cast<size_t>(all.used)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  job.slots = reinterpret_cast<Slot*>(job.memory + slots_offset);
  job.heads = reinterpret_cast<HeadPlace*>(job.memory + heads_offset);
  job.seen = reinterpret_cast<typename Worker::Seen*>(job.memory + seen_offset);
  memset(job.slots, 0, static_cast<size_t>(job.slot_count) * sizeof(Slot));
  place_heads(job);
  return DYNATTN_OK;
}

// All query blocks of a call, for at least one query.
template <class Worker>
static int32_t run_heads(const typename Worker::Plan& plan) {
  Job<Worker> job = {};
  const typename Worker::Plan* const plans[] = {&plan};
  const int32_t status = open_heads(job, plans, 1);
  if (status != DYNATTN_OK) return status;
  run_team(plan.args->parallel, job.threads, work<Worker>, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
