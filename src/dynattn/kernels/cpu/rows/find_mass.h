// Finds the threshold of a row by mass: the largest weights are kept until they hold a share of all. Scores lie as
// find_threshold.h has them.
//
// A score is tried by the weights of all that reach it. They are added up over the whole row, by lane and in the order
// of the keys, with 0 for what does not reach it: so no rounding makes more weights hold less. The two scores between
// which the share is reached come nearer until a vector of keys is left between them. Those few are added one by one in
// the order of their ranks, equal scores in the order of their keys, and the first with which the share is reached is
// the last one kept.
#pragma once

#include "rows/find_threshold.h"

namespace dynattn::DYNATTN_NAMESPACE {

// A sum that lacks less than this of the share reaches it. Sums are off by about a third of that, so that without it a
// row of equal weights would keep as many as the share asks for, or one more, as its length has it.
constexpr float kLacking = 0x1p-20f;

// What the scores that reach a value hold, and how many they are.
struct Held {
  float mass;
  int64_t count;
};

static Held held_from(const float* row, const float* weights, int64_t length, float value) {
  const Vec limit = broadcast(value);
  Vec sums[4] = {zero(), zero(), zero(), zero()};
  int64_t below[4] = {};
  for (int64_t at = 0; at < length; at += 4 * kWidth) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const Mask under = greater(limit, load(row + at + i * kWidth));
      sums[i] = add(sums[i], select(under, zero(), load(weights + at + i * kWidth)));
      below[i] += __builtin_popcount(bits(under));
    }
  }
  return {reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3]))),
          length - ((below[0] + below[1]) + (below[2] + below[3]))};
}

// The share is reached by the scores from `low` on, and not by those from `high` on.
struct MassBracket {
  float low, high;
  Held from_low, from_high;
};

// The last one kept of a bracket that holds at most a vector of keys.
static Threshold rank_by_mass(const float* row, const float* weights, int64_t length, const MassBracket& b,
                              float wanted) {
  alignas(64) float scores[2 * kWidth], masses[2 * kWidth];
  const Vec low = broadcast(b.low), high = broadcast(b.high);
  int count = 0;
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(row + at);
    const uint32_t inside = bits(greater(high, x)) & ~bits(greater(low, x));
    if (inside == 0) continue;
    store_any(scores + count, compress(inside, x));
    store_any(masses + count, compress(inside, load(weights + at)));
    count += __builtin_popcount(inside);
  }
  for (int i = 1; i < count; i++) {  // the largest first, equal ones as they were
    const float score = scores[i], mass = masses[i];
    int at = i;
    for (; at > 0 && score > scores[at - 1]; at--) scores[at] = scores[at - 1], masses[at] = masses[at - 1];
    scores[at] = score, masses[at] = mass;
  }
  float held = b.from_high.mass + masses[0];
  int last = 0, first_tie = 0;
  while (held < wanted && last + 1 < count) {
    held += masses[++last];
    if (scores[last] < scores[first_tie]) first_tie = last;
  }
  const bool more = last + 1 < count && scores[last + 1] == scores[last];
  return {scores[last], more ? key_of_tie(row, scores[last], last - first_tie + 1) : kAllTies};
}

// The same where all keys of the bracket have one score, and with it one weight.
static Threshold tie_by_mass(const float* row, const MassBracket& b, float wanted) {
  const float ties = static_cast<float>(b.from_low.count - b.from_high.count);
  const float share = (wanted - b.from_high.mass) * ties / (b.from_low.mass - b.from_high.mass);
  if (!(share <= ties - 1.0f)) return {b.low, kAllTies};
  return {b.low, key_of_tie(row, b.low, larger<int64_t>(1, static_cast<int64_t>(ceilf(share))))};
}

// The fewest of the largest weights of a row that hold the share `mass`, above 0, of all. `weights`: room for as many.
static Threshold threshold_by_mass(const Plan& plan, const float* row, int64_t length, float mass, float* weights) {
  const float largest = largest_of(row, length);
  const Vec reference = broadcast(largest), exponent = broadcast(plan.exponent), floor = broadcast(plan.floor);
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(row + at);
    const Vec weight = exp2_scaled(sub(x, reference), exponent, floor);
    store(weights + at, select(greater(broadcast(-FLT_MAX), x), zero(), weight));
  }
  const Held all = held_from(row, weights, length, -FLT_MAX);
  const float wanted = mass * all.mass * (1.0f - kLacking);
  MassBracket b = {-FLT_MAX, nextafterf(largest, INFINITY), all, {0.0f, 0}};
  // All weights below this one together are no more than may be dropped.
  const float droppable = (1.0f - mass) * all.mass / static_cast<float>(all.count);
  float guess = largest + log2f(droppable) / plan.exponent;
  for (int turn = 0; b.from_low.count - b.from_high.count > kWidth; turn++) {
    if (turn >= kGuesses || !(b.low < guess && guess < b.high)) {
      const int64_t low = ordinal(b.low), high = ordinal(b.high);
      if (high - low == 1) return tie_by_mass(row, b, wanted);
      guess = of_ordinal(low + (high - low) / 2);
    }
    const Held held = held_from(row, weights, length, guess);
    if (held.mass >= wanted) {
      b.low = guess, b.from_low = held;
    } else {
      b.high = guess, b.from_high = held;
    }
    // In turns as if the mass were evenly spread between the two, and in the middle, since it is not.
    const float share = (b.from_low.mass - wanted) / (b.from_low.mass - b.from_high.mass);
    guess = b.low + (b.high - b.low) * (turn % 2 == 0 ? share : 0.5f);
  }
  return rank_by_mass(row, weights, length, b, wanted);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
