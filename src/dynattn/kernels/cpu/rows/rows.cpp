// Attention of rows that choose by their own scores, forward, and of one query that skips by running maxima, for one
// instruction set. Compiled once for each.
#include "common/builds.h"
#include "common/float_heads.h"
#include "rows/few_queries.h"
#include "rows/forward.h"

namespace dynattn::DYNATTN_NAMESPACE {

using RowWorker = QueryBlocks<RowPlan, RowScratch, lay_row_scratch, run_row_query_block>;

int32_t row_forward(const RowForwardArgs& args) {
  if (args.call.batch * args.call.q_len == 0) return DYNATTN_OK;
  if (are_few(args.call)) return run_few_rows(args);
  RowPlan plan;
  make_row_plan(plan, args);
  return run_heads<RowWorker>(plan);
}

int32_t skip_one_query(const SkipForwardArgs& args) {
  if (args.call.batch == 0) return DYNATTN_OK;
  const RowForwardArgs all = {args.call, INT64_MAX, 0, 1, 1, -1.0f, 0.0f};
  return run_few_rows(all, &args);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
