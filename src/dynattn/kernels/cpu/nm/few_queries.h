// Few queries against many keys, as in decoding with a KV cache: keys and values are read in place, and only once.
//
// Packing pays when many rows use a packed key. For a few, a score is a product along head_dim with the key's own row,
// and a value row is touched only where its key is kept. The scores of a tile lie by position as plan.h has it, so that
// masks, choice, weights and counts are those of packed query blocks, in their careful variant: NaN and infinity need
// no second path here.
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
#include "nm/few_range.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Queries up to which nothing is packed, and rows that may share a key head: all by measurement. More queries fill
// the register tiles of packed query blocks. Wide values cannot stay where they lie there, so that packing them pays
// for more queries only.
#ifdef DYNATTN_PAIRS
constexpr int64_t kFewQueries = 8;
#else
constexpr int64_t kFewQueries = 6;
#endif
constexpr int64_t kFewQueriesWide = 12;
constexpr int64_t kWideValue = 64;  // a value_dim above it is wide
constexpr int64_t kFewRows = 64;

constexpr int64_t kRangeKeys = 512;   // keys a range, at least
constexpr int64_t kRangeTasks = 256;  // ranges are not multiplied beyond about so many tasks
constexpr int64_t kTasksEach = 4;     // heads are taken together as long as each thread finds so many tasks

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

// Whether a call reads keys and values in place, and only once.
static bool are_few(const NMForwardArgs& args) {
  if (args.needs_grad || args.drop_below != 0) return false;
  const int64_t most = args.value_dim > kWideValue ? kFewQueriesWide : kFewQueries;
  return args.q_len <= most && args.q_len * (args.heads / args.kv_heads) <= kFewRows;
}

// Whether the rows of all heads for one key lie side by side, nearer than those of the next key.
static bool are_side_by_side(const Plan& plan, const int64_t strides[3]) {
  return plan.pages.table != nullptr || strides[1] < strides[2];
}

// Whether rows that choose independently keep nearly all keys between them, so that nearly all values are read.
static bool reads_most_values(const Plan& plan, int64_t rows) {
  constexpr double kMost = 0.85;
  double left = 1;
  for (int64_t r = 0; r < rows && left > 1 - kMost; r++) left *= 1 - static_cast<double>(plan.n) / plan.m;
  return left <= 1 - kMost;
}

static Few plan_few(Plan& plan) {
  const NMForwardArgs& args = *plan.args;
  plan.rows = 1;  // no padding
  Few few = {};
  few.plan = &plan;
  few.heads = args.batch * args.kv_heads;
  few.heads_per_kv = args.heads / args.kv_heads;
  few.rows = few.heads_per_kv * args.q_len;
  few.together = 1;
  const int64_t most = larger<int64_t>(1, smaller(ceil_div(args.kv_len, kRangeKeys), ceil_div(kRangeTasks, few.heads)));
  few.range_tiles = larger<int64_t>(1, ceil_div(plan.tiles, most));
  few.ranges = larger<int64_t>(1, ceil_div(plan.tiles, few.range_tiles));

  few.key_width = round_up(args.head_dim, kWidth);
  few.keys_in_place = args.dtype == DYNATTN_FLOAT32 && few.key_width == args.head_dim;
  few.values_in_place = args.dtype == DYNATTN_FLOAT32 && value_width(plan) == args.value_dim;
#ifdef DYNATTN_PAIRS
  few.pairs = args.dtype == DYNATTN_BFLOAT16 && args.head_dim % kPairWidth == 0 && args.value_dim % kPairWidth == 0 &&
              plan.tile % kPairWidth == 0;
  if (few.pairs && (plan.chunk % 2 != 0 || value_width(plan) != args.value_dim)) {
    plan.chunk = 2, plan.chunks = static_cast<int>(args.value_dim / kPairWidth);
  }
  plan.rounds = few.pairs;
#endif
  few.values_soon = reads_most_values(plan, few.rows);
  Arena states = {0, 0};
  lay_rows(plan, few.rows, states);
  few.states_bytes = states.used;
  return few;
}

// The key heads of a task: as many as leave enough tasks for the threads, of those that all calls have.
static int64_t heads_together(const Few& few, int64_t tasks, int threads) {
  const NMForwardArgs& args = *few.plan->args;
  if (!are_side_by_side(*few.plan, args.key_strides) || !are_side_by_side(*few.plan, args.value_strides)) return 1;
  for (int64_t heads = args.kv_heads; heads > 1; heads--) {
    if (args.kv_heads % heads == 0 && tasks / heads >= kTasksEach * threads) return heads;
  }
  return 1;
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
    products += products_of(*calls[i].plan->args);
  }
  job.threads = useful_threads(products, calls[0].plan->args->threads, tasks);
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
