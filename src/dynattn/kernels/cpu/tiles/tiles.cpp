// N:M attention of bfloat16 tensors on one tile engine, forward and backward, and of float32 tensors forward. Compiled
// once for each.
#include "common/builds.h"
#include "common/tasks.h"
#include "tiles/backward.h"
#include "tiles/forward.h"
#include "tiles/rows.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct TileWorker {
  using Plan = TilePlan;
  using Head = TileHead;

  struct Memory {
    char* keys;
    char* values;
    uint8_t* odd;
  };

  struct Seen {
    float keys, values;  // largest magnitudes; infinite where one is not finite
  };

  const TilePlan& plan;
  const TileScratch scratch;
  const RowScratch rows;
  Engine engine;

  TileWorker(const TilePlan& call, Arena& arena)
      : plan(call), scratch(lay_tile_scratch(call, arena)), rows(lay_row_scratch(call, arena)) {}

  static Memory lay_head(const TilePlan& plan, Arena& arena) {
    Memory memory;
    memory.keys = arena.take<char>((plan.key_blocks - plan.packed_from) * key_block_bytes(plan));
    memory.values = arena.take<char>(plan.key_blocks * value_block_bytes(plan));
    memory.odd = arena.take<uint8_t>(plan.args->kv_len);
    return memory;
  }

  static Seen pack(const TilePlan& plan, int64_t head, int64_t step, const Memory& memory) {
    const NMForwardArgs& args = *plan.args;
    const char* keys = head_of(args, args.key, args.key_strides, head);
    const char* values = head_of(args, args.value, args.value_strides, head);
    const int64_t first = step * plan.step_blocks, last = smaller(first + plan.step_blocks, plan.key_blocks);
    const int64_t packed = larger<int64_t>(0, first - plan.packed_from);
    if (plan.floats) {
      if (is_ended(plan)) return {0.0f, 0.0f};
      const Seen seen = {pack_key_parts(plan, keys, first, last, memory.keys + packed * key_block_bytes(plan)),
                         pack_value_parts(plan, values, first, last, memory.values + first * value_block_bytes(plan))};
      if (!(larger(seen.keys, seen.values) < kLargestOfParts)) end_call(plan);
      return seen;
    }
    return {pack_key_blocks(plan, keys, first, last, memory.keys + packed * key_block_bytes(plan)),
            pack_value_blocks(plan, values, first, last, memory.values + first * value_block_bytes(plan),
                              memory.odd + first * plan.key_block)};
  }

  static Head open(const TilePlan& plan, int64_t head, const Memory& memory, const Seen* seen) {
    const NMForwardArgs& args = *plan.args;
    Head packed = {};
    packed.keys = head_of(args, args.key, args.key_strides, head);
    packed.key_stride = args.key_strides[2] * 2;
    packed.packed_keys = memory.keys;
    packed.values = memory.values;
    packed.own_values = plan.floats ? nullptr : row_of(head_of(args, args.value, args.value_strides, head), 0, 0);
    packed.value_stride = args.value_strides[2];
    packed.odd = memory.odd;
    for (int64_t step = 0; step < plan.pack_steps; step++) {
      packed.key_bound = larger(packed.key_bound, seen[step].keys);
      packed.value_bound = larger(packed.value_bound, seen[step].values);
    }
    return packed;
  }

  void run(const Head& head, int64_t batch, int64_t index, int64_t first) {
    if (plan.unfit != nullptr && is_ended(plan)) return;
    const int64_t end = smaller(first + plan.query_block, plan.args->q_len);
    for (int64_t query = first; query < end; query += kQueries) {
      const int64_t count = smaller<int64_t>(kQueries, end - query);
      if (plan.rule != nullptr) {
        run_row_queries(plan, head, scratch, rows, engine, batch, index, query, count);
      } else {
        run_queries(plan, head, scratch, engine, batch, index, query, count);
      }
    }
  }
};

void multiply(const void* a, const void* b, int64_t steps, float* sums) {
  constexpr int64_t kRowBytes = kTileDepth * 2;
  Engine engine;
  const Operand left = {static_cast<const char*>(a), kTileRows * kRowBytes * steps, kRowBytes, kRowBytes * steps};
  const Operand right = {static_cast<const char*>(b), kTileBytes, 2 * kTileBytes, 64};
  multiply_panel<true>(engine, left, 2, right, 2, Terms(), steps, sums, 2 * kTileRows);
}

int32_t nm_forward(const NMForwardArgs& args) {
  const bool floats = kTakesParts && args.dtype == DYNATTN_FLOAT32 && args.parts >= 1 && args.parts <= kMostParts &&
                      args.needs_grad == 0 && args.drop_below == 0;
  if (args.dtype != DYNATTN_BFLOAT16 && !floats) return DYNATTN_BAD_ARGUMENT;
  if (args.batch * args.q_len == 0) return DYNATTN_OK;
  int32_t unfit = 0;
  TilePlan plan;
  make_tile_plan(plan, args);
  plan.unfit = &unfit;
  const int32_t status = run_heads<TileWorker>(plan);
  return unfit != 0 ? DYNATTN_NOT_BY_PARTS : status;
}

int32_t row_forward(const RowForwardArgs& args) {
  const NMForwardArgs& call = args.call;
  const bool alone = call.needs_grad == 0 && call.kept_mass == nullptr && call.threshold == nullptr;
  constexpr int64_t kMostKeys = 1 << 24;  // whose numbers a float holds
  if (call.dtype != DYNATTN_BFLOAT16 || !alone || call.drop_below > 0) return DYNATTN_BAD_ARGUMENT;
  if (call.batch * call.q_len == 0) return DYNATTN_OK;
  if (call.kv_len > kMostKeys) return DYNATTN_NOT_BY_PARTS;
  int32_t unfit = 0;
  TilePlan plan;
  make_tile_plan(plan, call);
  plan.rule = &args;
  plan.unfit = &unfit;
  const int32_t status = run_heads<TileWorker>(plan);
  return unfit != 0 ? DYNATTN_NOT_BY_PARTS : status;
}

int32_t skip_forward(const SkipForwardArgs& args) {
  if (args.call.dtype != DYNATTN_BFLOAT16) return DYNATTN_BAD_ARGUMENT;
  if (args.call.batch * args.call.q_len == 0) return DYNATTN_OK;
  TilePlan plan;
  make_tile_plan(plan, args.call);
  plan.skips = true;
  plan.kept_runs = args.kept;
  plan.margin = args.margin * static_cast<float>(1.0 / kLog2) / plan.exponent;
  return run_heads<TileWorker>(plan);
}

int32_t sum_rows(const NMForwardArgs& args, const RowSums& sums) {
  TilePlan plan;
  make_tile_plan(plan, args);
  plan.sums = sums;
  return run_heads<TileWorker>(plan);
}

int32_t nm_backward(const NMBackwardArgs& args) {
  const bool by_rows = args.forward.threshold != nullptr;  // which other kernels do
  if (args.forward.dtype != DYNATTN_BFLOAT16 || by_rows) return DYNATTN_BAD_ARGUMENT;
  RoughRows rough;
  const int32_t status = rough.find(args.forward);
  if (status != DYNATTN_OK) return status;
  BackwardPlan plan;
  make_backward_plan(plan, args, rough.sums());
  return run_backward(plan);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
