// Dense attention that skips runs of keys by running maxima, forward, for one instruction set. Compiled once for each.
#include "common/builds.h"
#include "common/float_heads.h"
#include "skips/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct SkipWorker : FloatHeads {
  using Plan = SkipPlan;
  const SkipPlan& plan;
  const SkipScratch scratch;

  SkipWorker(const SkipPlan& call, Arena& arena) : plan(call), scratch(lay_skip_scratch(call, arena)) {}

  void run(const PackedHead& packed, int64_t batch, int64_t index, int64_t first) const {
    run_skip_query_block(plan, packed, scratch, batch, index, first);
  }
};

int32_t skip_forward(const SkipForwardArgs& args) {
  SkipPlan plan;
  make_skip_plan(plan, args);
  if (args.call.batch * args.call.q_len == 0) return DYNATTN_OK;
  return run_heads<SkipWorker>(plan);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
