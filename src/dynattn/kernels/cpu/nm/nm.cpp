// N:M attention, forward, for one instruction set. Compiled once for each.
#include "common/builds.h"
#include "common/float_heads.h"
#include "nm/few_queries.h"
#include "nm/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

using NMWorker = QueryBlocks<Plan, Scratch, lay_scratch, run_query_block>;

int32_t nm_forward(const NMForwardArgs& args) {
  Plan plan;
  make_plan(plan, args);
  if (args.batch * args.q_len == 0) return DYNATTN_OK;
  return are_few(args) ? run_few(plan) : run_heads<NMWorker>(plan);
}

int32_t sum_rows(const NMForwardArgs& args, const RowSums& sums) {
  Plan plan;
  make_plan(plan, args);
  plan.sums = sums;
  return run_heads<NMWorker>(plan);
}

// Many texts at once: those of many queries first, whose tasks are longer, then those of few.
struct TextsJob {
  Job<NMWorker> heads = {};
  FewJob few = {};
};

static void work_texts(void* data) {
  TextsJob& job = *static_cast<TextsJob*>(data);
  work<NMWorker>(&job.heads);
  work_few(&job.few);
}

// For texts that all have queries.
int32_t nm_texts(const Text* texts, int64_t count) {
  Arena sizes = {0, 0};
  sizes.take<Plan>(count);
  const int64_t plans_offset = sizes.used;
  sizes.take<const Plan*>(count);
  const int64_t few_offset = sizes.used;
  sizes.take<Few>(count);
  char* memory = static_cast<char*>(take_workspace(static_cast<size_t>(sizes.used)));
  if (memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  Plan* const all = reinterpret_cast<Plan*>(memory);
  const Plan** const many = reinterpret_cast<const Plan**>(memory + plans_offset);
  Few* const few = reinterpret_cast<Few*>(memory + few_offset);
  int64_t many_count = 0, few_count = 0;
  for (int64_t i = 0; i < count; i++) {
    make_plan(all[i], texts[i].args, texts[i].pages);
    if (are_few(texts[i].args)) {
      few[few_count++] = plan_few(all[i]);
    } else {
      many[many_count++] = &all[i];
    }
  }
  TextsJob job;
  int32_t status = DYNATTN_OK;
  if (many_count > 0) status = open_heads(job.heads, many, many_count);
  if (few_count > 0 && status == DYNATTN_OK) status = open_few(job.few, few, few_count);
  if (status == DYNATTN_OK)
    run_team(texts[0].args.parallel, larger(job.heads.threads, job.few.threads), work_texts, &job);
  return_workspace(memory);
  if (job.few.memory != nullptr) return_workspace(job.few.memory);
  if (job.heads.memory != nullptr) return_workspace(job.heads.memory);  // the largest last, which is kept
  return status;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
