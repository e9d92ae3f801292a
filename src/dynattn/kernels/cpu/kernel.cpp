// N:M attention, forward, for one instruction set. Compiled once for each.
#include "kernel.h"

#include "block.h"
#include "decode.h"
#include "heads.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct NMWorker {
  using Plan = DYNATTN_NAMESPACE::Plan;
  const Plan& plan;
  const Scratch scratch;

  NMWorker(const Plan& call, Layouter& layouter) : plan(call), scratch(lay_scratch(call, layouter)) {}

  void run(const PackedHead& packed, int64_t batch, int64_t index, int64_t first) const {
    run_block(plan, packed, scratch, batch, index, first);
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

// Chains of multiply-adds, enough of them to fill every unit through its latency.
double fma_chains(int64_t rounds) {
  constexpr int kChains = 10;
  Vec x[kChains];
  for (int i = 0; i < kChains; i++) x[i] = broadcast(static_cast<float>(i));
  const Vec factor = broadcast(0.999f), term = broadcast(0.001f);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 10
    for (int i = 0; i < kChains; i++) x[i] = fmadd(x[i], factor, term);
  }
  Vec sum = zero();
  for (int i = 0; i < kChains; i++) sum = add(sum, x[i]);
  volatile float keep = reduce_add(sum);  // or the chains would be computed for nothing, and left out
  (void)keep;
  return 2.0 * kWidth * kChains * static_cast<double>(rounds);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
