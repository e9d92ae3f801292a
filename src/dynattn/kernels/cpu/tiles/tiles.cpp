// N:M attention of bfloat16 tensors on one tile engine, forward. Compiled once for each.
#include "kernel.h"
#include "tiles/tasks.h"

namespace dynattn::DYNATTN_NAMESPACE {

int32_t nm_forward(const NMForwardArgs& args) {
  if (args.dtype != DYNATTN_BFLOAT16) return DYNATTN_BAD_ARGUMENT;
  if (args.batch * args.q_len == 0) return DYNATTN_OK;
  TilePlan plan;
  make_tile_plan(plan, args);
  return run_tiles(plan);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
