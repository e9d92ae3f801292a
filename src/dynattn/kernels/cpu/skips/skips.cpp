// Dense attention that skips runs of keys by running maxima, forward, for one instruction set. Compiled once for each.
#include "common/builds.h"
#include "common/float_heads.h"
#include "skips/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

using SkipWorker = QueryBlocks<SkipPlan, SkipScratch, lay_skip_scratch, run_skip_query_block>;

int32_t skip_forward(const SkipForwardArgs& args) {
  SkipPlan plan;
  make_skip_plan(plan, args);
  if (args.call.batch * args.call.q_len == 0) return DYNATTN_OK;
  return run_heads<SkipWorker>(plan);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
