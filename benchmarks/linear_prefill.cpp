// A linear layer of many tokens whose inputs are kept 1:2 by magnitude: a prototype, to learn whether it pays. The products
// are those of attention weights with values (nm/values.h): what a token keeps of 64 inputs, times their rows of weights,
// 64 outputs at a time. One thread.
//
// Weights come in panels, [outputs / 64][inputs / 64][64 inputs][64 outputs]: one lies in the first-level cache.
#include <vector>

#include "nm/values.h"

using namespace dynattn::DYNATTN_NAMESPACE;

namespace {

constexpr int64_t kTokens = 192;  // of a block: what they keep stays in the second-level cache
constexpr int64_t kOutputs = kMaxChunk * kWidth;
constexpr int64_t kHalf = kTile / 2, kWords = kHalf / kWidth;

// Of each pair the larger, the first of equal ones, and a bit where it is the second.
void choose(const float* x, int64_t pairs, float* kept, uint32_t* words) {
  for (int64_t first = 0; first < pairs; first += kWidth) {
    uint32_t word = 0;
    for (int lane = 0; lane < kWidth; lane++) {
      const float a = x[2 * (first + lane)], b = x[2 * (first + lane) + 1];
      const bool second = fabsf(b) > fabsf(a);
      kept[first + lane] = second ? b : a;
      word |= uint32_t{second} << lane;
    }
    words[first / kWidth] = word;
  }
}

}  // namespace

extern "C" {

int64_t panel_outputs() { return kOutputs; }

void prefill(const float* x, const float* panels, float* y, int64_t tokens, int64_t inputs, int64_t outputs) {
  static const Plan plan = {};  // which only strided groups read
  const int64_t tiles = inputs / kTile;
  std::vector<float> memory(static_cast<size_t>(kTokens * (inputs / 2 + kOutputs)) + 16);
  std::vector<uint32_t> words(static_cast<size_t>(kTokens * tiles * kWords));
  float* const kept = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63});
  float* const sums = kept + kTokens * inputs / 2;
  for (int64_t first = 0; first < tokens; first += kTokens) {
    const int64_t count = smaller(kTokens, tokens - first);
    for (int64_t t = 0; t < count; t++) {
      choose(x + (first + t) * inputs, inputs / 2, kept + t * inputs / 2, words.data() + t * tiles * kWords);
    }
    for (int64_t chunk = 0; chunk < outputs / kOutputs; chunk++) {
      for (int64_t i = 0; i < count * kOutputs; i++) sums[i] = 0.0f;
      for (int64_t tile = 0; tile < tiles; tile++) {
        const float* panel = panels + (chunk * tiles + tile) * kTile * kOutputs;
        for (int64_t t = 0; t < count; t++) {
          sparse_rows<1, kMaxChunk, false, 1>(plan, sums + t * kOutputs, kOutputs, kept + (t * tiles + tile) * kHalf,
                                              words.data() + (t * tiles + tile) * kWords, panel);
        }
      }
      for (int64_t t = 0; t < count; t++) {
        memcpy(y + (first + t) * outputs + chunk * kOutputs, sums + t * kOutputs, kOutputs * sizeof(float));
      }
    }
  }
}

}  // extern "C"
