// Few queries whose rows choose by their own scores, as in decoding with a KV cache: keys are read in place and once,
// and values only where a row keeps their key.
//
// A key head is taken in three steps, for all query rows that share it:
//
//     1. ranges of keys: scores, which stay until the rows are known whole (few_scores.h);
//     2. rows: what each keeps, found and listed as in packed query blocks;
//     3. ranges of keys: weights times values (few_values.h). The task that completes a head adds up its ranges, in
//        order.
//
// Threads take tasks in this order, and a step begins when all tasks before it are done. Heads go through the steps side
// by side, as many as keep memory below a bound. Shapes alone decide how long ranges are, so that threads change no bit.
//
// Where the rows of all heads for one key lie side by side, a task scores them together, as nm/few_queries.h does.
#pragma once

#include "common/tasks.h"
#include "rows/few_scores.h"
#include "rows/few_values.h"
#include "rows/skipped_runs.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Memory of the heads that go side by side stays below this, unless a task's heads need more.
constexpr int64_t kSideBySideBytes = int64_t{8} << 20;

// Units are the heads that a task scores together.
struct FewRowJob {
  const FewRows* call;
  char* memory;
  int64_t* finished;                 // [unit of a turn] ranges added up
  int64_t units, turn_units, tasks;  // turn_units: those that go through the steps side by side
  int64_t scratch_offset, scratch_bytes;  // [thread]
  int64_t heads_offset, head_bytes;       // [unit of a turn][head]
  int threads;
  int64_t next_task, next_thread, done;
};

static HeadRows unit_head(const FewRowJob& job, int64_t unit, int64_t number) {
  const int64_t at = job.heads_offset + (unit * job.call->together + number) * job.head_bytes;
  Arena arena = {reinterpret_cast<uintptr_t>(job.memory + at), 0};
  return lay_head_rows(*job.call, arena);
}

// Whether the scores of a row's keys are numbers below infinity and, where no mask forbids any, above -inf.
static bool are_plain(const Plan& plan, const float* scores, int64_t keys) {
  const Vec infinity = broadcast(INFINITY), lowest = broadcast(plan.args->mask == nullptr ? -FLT_MAX : -INFINITY);
  uint32_t odd = 0;
  for (int64_t i = 0; i < keys; i += kWidth) {
    const Vec x = load(scores + i);
    odd |= (~bits(greater(infinity, x)) | bits(greater(lowest, x))) & first_lanes(keys - i);
  }
  return odd == 0;
}

// Finds and lists what a row of head `number` keeps.
static void choose_kept(const FewRows& call, const FewRowScratch& scratch, const HeadRows& head, int64_t number,
                        int64_t row) {
  const RowPlan& plan = *call.row_plan;
  const int64_t query = row % plan.args->q_len;
  FewHead one(call, scratch.few, rows_from(head.states, query), number, row / plan.args->q_len);
  one.block.first = query, one.block.count = 1;
  clear_rows(one.block);
  float* const scores = head.scores + row * plan.row_floats;
  one.block.careful = plan.careful || !are_plain(plan, scores, keys_of(plan, query));
  if (call.skips != nullptr) {
    forbid_skipped(plan, *call.skips, scores, noted_runs(*call.skips, one.block.batch, one.block.index));
  }
  Threshold line;
  const RowScratch own = {one.scratch,  scores, head.numbers + row * plan.row_floats,
                          scratch.room, head.starts + row * (plan.spans + 1), &line};
  line = find_row(plan, one.block, own, 0);
  list_kept(plan, one.block, own, 0);
}

// Adds up the ranges of head `number` and writes its rows.
static void finish_head(const FewRows& call, const FewScratch& scratch, const HeadRows& head, int64_t number) {
  const int64_t count = call.rows * head.states.out_stride;
  for (int64_t range = 1; range < call.ranges; range++) {
    const float* const part = range_outputs(call, head, range);
    float* const out = head.states.out;
    for (int64_t i = 0; i < count; i += kWidth) store(out + i, add(load(out + i), load(part + i)));
  }
  for (int64_t member = 0; member < call.heads_per_kv; member++) {
    finish_rows(FewHead(call, scratch, head.states, number, member).block);
  }
}

// A task of one of the steps, number `at` of those for the units from `first_unit` on.
static void run_score_task(FewRowJob& job, const FewRowScratch& scratch, int64_t first_unit, int64_t at) {
  const FewRows& call = *job.call;
  const int64_t unit = at / call.ranges;
  const auto head_of = [&](int64_t number) { return unit_head(job, unit, number); };
  score_range(call, scratch.few, head_of, (first_unit + unit) * call.together, at % call.ranges);
}

static void run_choice_task(FewRowJob& job, const FewRowScratch& scratch, int64_t first_unit, int64_t at) {
  const FewRows& call = *job.call;
  const int64_t head = at / call.rows, unit = head / call.together, number = head % call.together;
  choose_kept(call, scratch, unit_head(job, unit, number), first_unit * call.together + head, at % call.rows);
}

static void run_value_task(FewRowJob& job, const FewRowScratch& scratch, int64_t first_unit, int64_t at) {
  const FewRows& call = *job.call;
  const int64_t unit = at / call.ranges, first_head = (first_unit + unit) * call.together;
  for (int64_t i = 0; i < call.together; i++) {
    add_range(call, scratch.few, unit_head(job, unit, i), first_head + i, at % call.ranges);
  }
  if (increment(job.finished[unit]) + 1 < call.ranges) return;
  job.finished[unit] = 0;  // for the next turn, which waits for this one
  for (int64_t i = 0; i < call.together; i++) finish_head(call, scratch.few, unit_head(job, unit, i), first_head + i);
}

static int64_t tasks_of_unit(const FewRows& call) { return 2 * call.ranges + call.together * call.rows; }

static void run_few_row_task(FewRowJob& job, const FewRowScratch& scratch, int64_t task) {
  const FewRows& call = *job.call;
  const int64_t turn_tasks = job.turn_units * tasks_of_unit(call), first_unit = task / turn_tasks * job.turn_units;
  const int64_t units = smaller(job.turn_units, job.units - first_unit);
  const int64_t counts[] = {units * call.ranges, units * call.together * call.rows, units * call.ranges};
  constexpr decltype(&run_score_task) kSteps[] = {run_score_task, run_choice_task, run_value_task};
  int64_t first = task / turn_tasks * turn_tasks;
  int step = 0;
  while (task - first >= counts[step]) first += counts[step++];
  wait_for(job.done, first);
  kSteps[step](job, scratch, first_unit, task - first);
}

static void work_few_rows(void* data) {
  FewRowJob& job = *static_cast<FewRowJob*>(data);
  const int64_t thread = increment(job.next_thread);
  if (thread >= job.threads) return;
  Arena arena = {reinterpret_cast<uintptr_t>(job.memory + job.scratch_offset + thread * job.scratch_bytes), 0};
  const FewRowScratch scratch = lay_few_row_scratch(*job.call, arena);
  for (int64_t task = increment(job.next_task); task < job.tasks; task = increment(job.next_task)) {
    run_few_row_task(job, scratch, task);
    increment(job.done);
  }
}

// Takes the memory of a call; return_workspace(job.memory) ends it.
static int32_t open_few_rows(FewRowJob& job, FewRows& call) {
  const NMForwardArgs& args = *call.plan->args;
  const int64_t tasks = call.heads * call.ranges;
  job.call = &call;
  job.threads = useful_threads(args.parallel, products_of(args), args.threads, tasks);
  call.together = heads_together(call, tasks, job.threads);
  Arena head = {0, 0}, scratch = {0, 0};
  lay_head_rows(call, head);
  lay_few_row_scratch(call, scratch);
  job.head_bytes = head.used, job.scratch_bytes = scratch.used;
  job.units = call.heads / call.together;
  job.turn_units = smaller(job.units, larger<int64_t>(1, kSideBySideBytes / (call.together * job.head_bytes)));
  job.tasks = job.units * tasks_of_unit(call);

  Arena all = {0, 0};
  all.take<int64_t>(job.turn_units);
  job.scratch_offset = all.used;
  all.take<char>(job.threads * job.scratch_bytes);
  job.heads_offset = all.used;
  all.take<char>(job.turn_units * call.together * job.head_bytes);
  job.memory = static_cast<char*>(take_workspace(static_cast<size_t>(all.used)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  job.finished = reinterpret_cast<int64_t*>(job.memory);
  memset(job.finished, 0, static_cast<size_t>(job.turn_units) * sizeof(int64_t));
  return DYNATTN_OK;
}

// For at least one query.
static int32_t run_few_rows(const RowForwardArgs& args, const SkipForwardArgs* skips = nullptr) {
  RowPlan plan;
  make_few_row_plan(plan, args);
  FewRows call = plan_few_rows(plan, skips);
  FewRowJob job = {};
  const int32_t status = open_few_rows(job, call);
  if (status != DYNATTN_OK) return status;
  run_team(args.call.parallel, job.threads, work_few_rows, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
