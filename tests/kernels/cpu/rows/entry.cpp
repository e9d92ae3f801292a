// The search for the threshold by mass, alone, for tests that compile it with a bug.
#include <cstdlib>

#include "rows/find_mass.h"

using namespace dynattn::DYNATTN_NAMESPACE;

extern "C" void find_mass(const float* row, int64_t keys, float mass, float* score, int32_t* last_tie) {
  const int64_t length = round_up(keys, kTile);
  const size_t bytes = static_cast<size_t>(length) * sizeof(float);
  float* scores = static_cast<float*>(std::aligned_alloc(64, bytes));
  float* weights = static_cast<float*>(std::aligned_alloc(64, bytes));
  for (int64_t i = 0; i < length; i++) scores[i] = i < keys ? row[i] : -INFINITY;
  Plan plan = {};
  plan.exponent = kLog2e, plan.floor = -127.0f / kLog2e;
  const Threshold found = threshold_by_mass(plan, scores, length, mass, weights);
  *score = found.score, *last_tie = found.last_tie;
  std::free(scores), std::free(weights);
}
