// Few queries against many keys, as in decoding with a KV cache: keys and values are read in place, and only once.
//
// Packing pays when many rows use a packed key. For a few, a score is a product along head_dim with the key's own row,
// and a value row is touched only where its key is kept, or where nearly all are (value_rows.h). The scores of a tile
// lie by position as plan.h has it, so that masks, choice, weights and counts are those of packed query blocks, in their
// careful variant: scores that are NaN or infinite need no second path here.
//
// A task is a range of keys, for one key head or for several, of one of the calls that threads share, and all query
// rows that share those heads. The task that completes a head merges its ranges, in order; shapes alone decide how long
// they are, so that threads change no bit.
//
// Where the rows of all heads for one key lie side by side, as in pages or in (tokens, heads, dim), a task takes heads
// together, tile by tile. By itself a head touches a few lines in every page of memory, and each page once for every
// head: the processor then looks up where pages lie for as long as it computes. Together all of a page is read at once.
#pragma once

#include "common/arena.h"
#include "common/team.h"
#include "nm/few_plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Calls of few queries that threads share.
struct FewJob {
  Few* calls;
  char* memory;
  int64_t count, tasks;
  int64_t scratch_offset, scratch_bytes;  // [thread]
  int threads;
  int64_t next_task, next_thread;
};

static void add_scaled(float* to, const float* from, int64_t count, float factor) {
  const Vec f = broadcast(factor);
  for (int64_t i = 0; i < count; i += kWidth) store(to + i, fmadd(load(from + i), f, load(to + i)));
}

// Adds the state of a row from another range of keys, after both are brought to a common reference.
static void merge_row(const Plan& plan, const RowStates& to, const RowStates& from, int64_t row) {
  to.kept[row] += from.kept[row];
  to.allowed[row] += from.allowed[row];
  to.poisoned[row] |= from.poisoned[row];
  if (from.ceiling[row] == -INFINITY) return;
  if (to.ceiling[row] == -INFINITY || from.reference[row] > to.reference[row]) {
    raise_reference(plan, to, row, from.reference[row]);
  }
  const float factor = exp2f((from.reference[row] - to.reference[row]) * plan.exponent);
  add_scaled(to.sum + row * kWidth, from.sum + row * kWidth, kWidth, factor);
  add_scaled(to.dropped + row * kWidth, from.dropped + row * kWidth, kWidth, factor);
  add_scaled(to.out + row * to.out_stride, from.out + row * from.out_stride, to.out_stride, factor);
}

static void run_few_task(const Few& few, const FewScratch& scratch, int64_t task) {
  const int64_t group = task / few.ranges, first_head = group * few.together;
  run_range(few, scratch, first_head, task % few.ranges);
  if (increment(few.finished[group]) + 1 < few.ranges) return;

  for (int64_t head = first_head; head < first_head + few.together; head++) {
    const RowStates whole = head_rows(few, scratch, head, 0);
    for (int64_t range = 1; range < few.ranges; range++) {
      const RowStates part = head_rows(few, scratch, head, range);
      for (int64_t r = 0; r < few.rows; r++) merge_row(*few.plan, whole, part, r);
    }
    for (int64_t member = 0; member < few.heads_per_kv; member++)
      finish_rows(FewHead(few, scratch, whole, head, member).block);
  }
}

static void work_few(void* data) {
  FewJob& job = *static_cast<FewJob*>(data);
  const int64_t thread = increment(job.next_thread);
  if (thread >= job.threads) return;
  char* own = job.memory + job.scratch_offset + thread * job.scratch_bytes;
  int64_t call = 0;
  for (int64_t task = increment(job.next_task); task < job.tasks;) {
    while (call + 1 < job.count && job.calls[call + 1].first_task <= task) call++;
    const Few& few = job.calls[call];
    Arena arena = {reinterpret_cast<uintptr_t>(own), 0};
    const FewScratch scratch = lay_few_scratch(few, arena);
    const int64_t end = few.first_task + few.heads / few.together * few.ranges;
    for (; task < end; task = increment(job.next_task)) run_few_task(few, scratch, task - few.first_task);
  }
}

// A byte that is read from memory takes as long as so many products of packed blocks.
constexpr double kProductsPerByte = 2;

// What a call reads of keys and values, at most.
static double bytes_of(const NMForwardArgs& args) {
  return static_cast<double>(args.kv_len) * static_cast<double>(args.head_dim + args.value_dim) *
         static_cast<double>(args.batch * args.kv_heads * element_size(args.dtype));
}

// Takes the memory of planned calls, each for at least one query row, and prepares work_few().
// return_workspace(job.memory) ends it.
static int32_t open_few(FewJob& job, Few* calls, int64_t count) {
  job.calls = calls, job.count = count;
  double products = 0;
  int64_t heads = 0, tasks = 0;
  for (int64_t i = 0; i < count; i++) {
    tasks += calls[i].heads * calls[i].ranges;
    heads += calls[i].heads;
    products += larger(products_of(*calls[i].plan->args), kProductsPerByte * bytes_of(*calls[i].plan->args));
  }
  job.threads = useful_threads(calls[0].plan->args->parallel, products, calls[0].plan->args->threads, tasks);
  for (int64_t i = 0; i < count; i++) {
    calls[i].together = heads_together(calls[i], tasks, job.threads);
    calls[i].first_task = job.tasks;
    job.tasks += calls[i].heads / calls[i].together * calls[i].ranges;
    Arena scratch = {0, 0};
    lay_few_scratch(calls[i], scratch);
    job.scratch_bytes = larger(job.scratch_bytes, scratch.used);
  }

  Arena all = {0, 0};
  all.take<int64_t>(heads);
  job.scratch_offset = all.used;
  all.take<char>(job.threads * job.scratch_bytes);
  const int64_t states_offset = all.used;
  for (int64_t i = 0; i < count; i++) {
    if (calls[i].ranges > 1) all.take<char>(calls[i].heads * calls[i].ranges * calls[i].states_bytes);
  }
  job.memory = static_cast<char*>(take_workspace(static_cast<size_t>(all.used)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  int64_t* finished = reinterpret_cast<int64_t*>(job.memory);
  memset(finished, 0, static_cast<size_t>(heads) * sizeof(int64_t));
  Arena states = {reinterpret_cast<uintptr_t>(job.memory + states_offset), 0};
  for (int64_t i = 0; i < count; i++) {
    Few& few = calls[i];
    few.finished = finished, finished += few.heads;
    few.states = few.ranges > 1 ? states.take<char>(few.heads * few.ranges * few.states_bytes) : nullptr;
  }
  return DYNATTN_OK;
}

static int32_t run_few(Plan& plan) {
  Few few = plan_few(plan);
  FewJob job = {};
  const int32_t status = open_few(job, &few, 1);
  if (status != DYNATTN_OK) return status;
  run_team(plan.args->parallel, job.threads, work_few, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
