// Linear layers with inputs, outputs or weights left out, for one instruction set. Compiled once for each.
#include "common/builds.h"
#include "linear/choice.h"
#include "linear/many_tokens.h"
#include "linear/nm_weights.h"
#include "linear/outputs.h"
#include "linear/rows.h"

namespace dynattn::DYNATTN_NAMESPACE {

int32_t linear_choice(const LinearArgs& args) { return run_choice(args); }

int32_t linear_rows(const LinearArgs& args) {
  if (args.tokens > DYNATTN_LINEAR_TOKENS) return run_many(args);
  return with_weights(args.weight_dtype, [&](auto weights) { return run_rows<decltype(weights)>(args); });
}

int32_t linear_outputs(const LinearArgs& args) {
  return with_weights(args.weight_dtype, [&](auto weights) { return run_dense_outputs<decltype(weights)>(args); });
}

int32_t linear_nm_weight(const LinearArgs& args) {
  return args.weight_dtype == DYNATTN_FLOAT32 ? run_nm<Float32Weights>(args) : run_nm<BFloat16Weights>(args);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
