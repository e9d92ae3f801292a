// The backward's tasks: a key head or, where heads are few, a part of its keys. A task takes its keys in sections, and
// every section meets all queries that may see it, so that one thread sums each row of dK and dV, in one order. dQ
// grows from section to section. Where a head has several parts, each sums a dQ of its own, and the task that completes
// the head adds them up in order. Only shapes decide how a head is cut into parts, so that the number of threads
// changes no bit.
#pragma once

#include "common/team.h"
#include "tiles/gradients.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct BackwardJob {
  const BackwardPlan* plan;
  char* memory;
  int64_t* finished;                      // [head] parts done
  Cut cut;                                // in blocks of keys
  int64_t query_floats;                   // of dQ of a query head: [tile of queries][dim][kQueries]
  int64_t d_query_offset, d_query_bytes;  // [head][part] where a head has several, else [thread]
  int64_t thread_offset, thread_bytes;
  int64_t next_task, next_thread;
};

static void run_part(const BackwardJob& job, const BackwardScratch& scratch, KeySection& section, Engine& engine,
                     int64_t head, int64_t part, float* d_query) {
  const BackwardPlan& plan = *job.plan;
  const NMForwardArgs& forward = plan.args->forward;
  memset(d_query, 0, static_cast<size_t>(job.cut.heads_per_kv * job.query_floats) * sizeof(float));
  const int64_t end = smaller((part + 1) * job.cut.part, plan.scores.key_blocks);
  for (int64_t start = part * job.cut.part; start < end; start += job.cut.section) {
    open_section(plan, head, start, smaller(start + job.cut.section, end), section);
    for (int64_t row = 0; row < job.cut.heads_per_kv * forward.q_len;) {
      const int64_t member = row / forward.q_len, first = row % forward.q_len;
      const int64_t count = smaller<int64_t>(kBackwardQueries, forward.q_len - first);
      row += count;
      const int64_t last_key = first + count - 1 + plan.scores.offset;  // that a causal mask allows
      if (forward.causal && last_key < start * plan.scores.key_block) continue;
      const QueryRows rows = {plan, scratch, engine, head / forward.kv_heads,
                              head % forward.kv_heads * job.cut.heads_per_kv + member, first, count};
      prepare_queries(rows, section);
      float* to = d_query + member * job.query_floats + first / kQueries * key_width(plan) * kQueries;
      for (int64_t block = section.first; block < section.end; block++) {
        if (forward.causal && last_key < block * plan.scores.key_block) break;
        grade_block(rows, section, block, to);
      }
    }
    close_section(plan, head, section);
  }
}

// Writes dQ for the query heads of one key head: the sum of its parts in order, times the scale.
static void write_d_query(const BackwardJob& job, int64_t head, float* sums) {
  const NMBackwardArgs& args = *job.plan->args;
  const NMForwardArgs& forward = args.forward;
  const int64_t floats = job.cut.heads_per_kv * job.query_floats;
  const int64_t part_floats = job.d_query_bytes / static_cast<int64_t>(sizeof(float));
  for (int64_t part = 1; part < job.cut.parts; part++) {
    for (int64_t i = 0; i < floats; i += kLanes) {
      store(sums + i, add(load_lanes(sums + i), load_lanes(sums + part * part_floats + i)));
    }
  }
  for (int64_t member = 0; member < job.cut.heads_per_kv; member++) {
    const int64_t index = head % forward.kv_heads * job.cut.heads_per_kv + member, *strides = args.d_query_strides;
    uint16_t* out =
        static_cast<uint16_t*>(args.d_query) + head / forward.kv_heads * strides[0] + index * strides[1];
    for (int64_t query = 0; query < forward.q_len; query++) {
      const float* from = sums + member * job.query_floats + query / kQueries * key_width(*job.plan) * kQueries;
      for (int64_t d = 0; d < forward.head_dim; d++) {
        out[query * strides[2] + d] = to_bfloat16(from[d * kQueries + query % kQueries] * forward.scale);
      }
    }
  }
}

static void work_backward(void* data) {
  BackwardJob& job = *static_cast<BackwardJob*>(data);
  const BackwardPlan& plan = *job.plan;
  const int64_t thread = increment(job.next_thread);
  Arena arena = {reinterpret_cast<uintptr_t>(job.memory + job.thread_offset + thread * job.thread_bytes), 0};
  const BackwardScratch scratch = lay_backward_scratch(plan, arena);
  KeySection section = lay_section(plan, job.cut.section, arena);
  clear_scratch(plan, scratch);
  Engine engine;
  for (int64_t task = increment(job.next_task); task < job.cut.tasks(); task = increment(job.next_task)) {
    const int64_t head = task / job.cut.parts, part = task % job.cut.parts;
    const int64_t first = job.cut.parts > 1 ? head * job.cut.parts : thread;
    const auto d_query = [&](int64_t index) {
      return reinterpret_cast<float*>(job.memory + job.d_query_offset + index * job.d_query_bytes);
    };
    run_part(job, scratch, section, engine, head, part, d_query(first + (job.cut.parts > 1 ? part : 0)));
    if (job.cut.parts == 1 || increment(job.finished[head]) == job.cut.parts - 1) write_d_query(job, head, d_query(first));
  }
}

// How heads are cut, and the layout of memory: its size.
static int64_t lay_backward(BackwardJob& job, int threads) {
  const BackwardPlan& plan = *job.plan;
  Arena own = {0, 0}, all = {0, 0}, sums = {0, 0};
  lay_backward_scratch(plan, own);
  lay_section(plan, job.cut.section, own);
  job.thread_bytes = own.used;
  all.take<char>(threads * job.thread_bytes);
  job.d_query_offset = all.used;
  sums.take<float>(job.cut.heads_per_kv * job.query_floats);
  job.d_query_bytes = sums.used;
  all.take<char>((job.cut.parts > 1 ? job.cut.tasks() : threads) * job.d_query_bytes);
  return all.used;
}

static int32_t run_backward(const BackwardPlan& plan) {
  const NMForwardArgs& forward = plan.args->forward;
  BackwardJob job = {};
  job.plan = &plan;
  job.cut = cut_heads(forward, plan.scores.key_blocks, plan.scores.key_block);
  if (job.cut.heads == 0) return DYNATTN_OK;
  job.query_floats = ceil_div(forward.q_len, kQueries) * key_width(plan) * kQueries;

  const int threads = useful_threads(forward.parallel, products_of(forward), forward.threads, job.cut.tasks());
  const int64_t finished_offset = lay_backward(job, threads);
  job.memory = static_cast<char*>(
      take_workspace(static_cast<size_t>(finished_offset) + static_cast<size_t>(job.cut.heads) * sizeof(int64_t)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  job.finished = reinterpret_cast<int64_t*>(job.memory + finished_offset);
  memset(job.finished, 0, static_cast<size_t>(job.cut.heads) * sizeof(int64_t));
  run_team(forward.parallel, threads, work_backward, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
