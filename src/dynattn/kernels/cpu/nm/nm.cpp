// N:M attention, forward, for one instruction set. Compiled once for each.
#include "common/builds.h"
#include "common/float_heads.h"
#include "nm/few_queries.h"
#include "nm/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct NMWorker : FloatHeads {
  using Plan = DYNATTN_NAMESPACE::Plan;
  const Plan& plan;
  const Scratch scratch;

  NMWorker(const Plan& call, Arena& arena) : plan(call), scratch(lay_scratch(call, arena)) {}

  void run(const PackedHead& packed, int64_t batch, int64_t index, int64_t first) const {
    run_query_block(plan, packed, scratch, batch, index, first);
  }
};

int32_t nm_forward(const NMForwardArgs& args) {
  Plan plan;
  make_plan(plan, args);
  if (args.batch * args.q_len == 0) return DYNATTN_OK;
  if (are_few(args) && !args.needs_grad && args.drop_below == 0)
    return run_few(plan, useful_threads(args, args.threads));
  return run_heads<NMWorker>(plan);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
