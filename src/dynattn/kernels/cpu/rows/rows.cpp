// Attention of rows that choose by their own scores, forward, for one instruction set. Compiled once for each.
#include "common/builds.h"
#include "common/float_heads.h"
#include "rows/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct RowWorker : FloatHeads {
  using Plan = RowPlan;
  const RowPlan& plan;
  const RowScratch scratch;

  RowWorker(const RowPlan& call, Arena& arena) : plan(call), scratch(lay_row_scratch(call, arena)) {}

  void run(const PackedHead& packed, int64_t batch, int64_t index, int64_t first) const {
    run_row_query_block(plan, packed, scratch, batch, index, first);
  }
};

int32_t row_forward(const RowForwardArgs& args) {
  RowPlan plan;
  make_row_plan(plan, args);
  if (args.call.batch * args.call.q_len == 0) return DYNATTN_OK;
  return run_heads<RowWorker>(plan);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
