// The choice of blocks by their mean scores, for one instruction set. Compiled once for each.
#include "blocks/choose.h"
#include "common/builds.h"
#include "common/team.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct ChoiceJob {
  MeansPlan plan;
  char* memory;
  int64_t room_bytes, heads, next_head, next_thread;
};

// The heads that share a key head: sums of its keys serve them all, unless each has a mask of its own.
static void choose_heads(const MeansPlan& plan, const MeansRoom& room, int64_t batch, int64_t kv_head) {
  const NMForwardArgs& args = *plan.args;
  const bool asks = plan.rule->alike > 0.0f;
  const int64_t group = args.heads / args.kv_heads;
  MeansHead head = {};
  head.keys = float_rows(plan, args.key, args.key_strides, batch, kv_head, room.other);
  if (plan.whole) head.keys.convert_all(room.all_keys, args.kv_len);
  bool keys_finite = true;
  for (int64_t index = kv_head * group; index < (kv_head + 1) * group; index++) {
    if (args.mask != nullptr) {
      head.mask = element(args.mask, batch * args.mask_strides[0] + index * args.mask_strides[1], args.mask_dtype);
    }
    if (index == kv_head * group || plan.by_head) {
      allow_keys(plan, room, head.mask);
      keys_finite = sum_blocks(plan, room, head.keys, args.kv_len, room.allowed, room.key_sums,
                               asks ? room.keys_alike : nullptr);
    }
    head.queries = float_rows(plan, args.query, args.query_strides, batch, index, room.one);
    const bool queries_finite = sum_blocks(plan, room, head.queries, args.q_len, nullptr, room.query_sums,
                                           asks ? room.queries_alike : nullptr);
    head.finite = keys_finite && queries_finite;
    uint8_t* kept = plan.rule->chosen + (batch * args.heads + index) * plan.rows * plan.columns;
    for (int64_t row = 0; row < plan.rows; row++) {
      mean_row(plan, room, head, row);
      choose_row(plan, room, row, kept + row * plan.columns);
    }
  }
}

static void work_choice(void* data) {
  ChoiceJob& job = *static_cast<ChoiceJob*>(data);
  const int64_t thread = increment(job.next_thread);
  Arena arena = {reinterpret_cast<uintptr_t>(job.memory + thread * job.room_bytes), 0};
  const MeansRoom room = lay_means(job.plan, arena);
  const int64_t kv_heads = job.plan.args->kv_heads;
  for (int64_t head = increment(job.next_head); head < job.heads; head = increment(job.next_head)) {
    choose_heads(job.plan, room, head / kv_heads, head % kv_heads);
  }
}

int32_t choose_blocks(const BlockForwardArgs& args) {
  ChoiceJob job = {};
  job.plan = plan_means(args);
  job.heads = args.call.batch * args.call.kv_heads;
  if (job.heads * job.plan.rows * job.plan.columns == 0) return DYNATTN_OK;
  Arena sizes = {0, 0};
  lay_means(job.plan, sizes);
  job.room_bytes = sizes.used;
  const double products = job.plan.by_query ? products_of(args.call) : products_of(args.call) / 16;
  const int threads = useful_threads(args.call.parallel, products, args.call.threads, job.heads);
  job.memory = static_cast<char*>(take_workspace(static_cast<size_t>(threads * job.room_bytes)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  run_team(args.call.parallel, threads, work_choice, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
