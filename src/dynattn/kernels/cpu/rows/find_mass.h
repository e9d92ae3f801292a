// Finds the threshold of a row by mass: the largest weights are kept until they hold a share of all. Scores lie as
// find_threshold.h has them.
//
// To try a score as the threshold, the weights of all scores that reach it are added up. They are added over the whole
// row, by lane and in the order of the keys, with 0 for the others, so that no rounding makes more weights hold less.
// Two scores bracket the point where the share is reached, and come nearer until at most a vector of keys is left
// between them. Those few are added one by one in the order of their ranks, equal scores in the order of their keys.
// The first with which the share is reached is the last one kept.
#pragma once

#include "rows/find_threshold.h"

namespace dynattn::DYNATTN_NAMESPACE {

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
  alignas(64) float scores[2 * kWidth] = {}, masses[2 * kWidth];
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

// What a search knows of a row: weights, how they are spread, and their sum.
struct MassRow {
  float largest, smallest, mean, deviation;  // of its allowed scores
  Held all;
};

static MassRow weigh_row(const Plan& plan, const float* row, int64_t length, float* weights) {
  MassRow seen;
  seen.largest = largest_of(row, length);
  const Vec reference = broadcast(seen.largest), exponent = broadcast(plan.exponent), floor = broadcast(plan.floor);
  Vec lowest = reference, sum = zero(), squares = zero();
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(row + at), apart = sub(x, reference);
    const Mask forbidden = greater(broadcast(-FLT_MAX), x);
    const Vec some = select(forbidden, zero(), apart);
    store(weights + at, select(forbidden, zero(), exp2_scaled(apart, exponent, floor)));
    lowest = min(lowest, select(forbidden, reference, x));
    sum = add(sum, some), squares = fmadd(some, some, squares);
  }
  seen.all = held_from(row, weights, length, -FLT_MAX);
  const float count = static_cast<float>(seen.all.count), apart = reduce_add(sum) / count;
  seen.smallest = -reduce_max(sub(zero(), lowest));
  seen.mean = seen.largest + apart;
  seen.deviation = sqrtf(larger(reduce_add(squares) / count - apart * apart, FLT_MIN));
  return seen;
}

// Where the share is reached, and how many keys lie in a unit of scores there, as if scores were spread normally: their
// weights are then spread likewise, around a larger mean. The quantile is nearly 0.59 of the logistic one's.
static Guess guess_mass(const Plan& plan, const MassRow& row, float mass) {
  const float shift = plan.exponent / kLog2e * row.deviation;
  const float place = shift + 0.59f * logf((1.0f - mass) / mass);
  const float count = static_cast<float>(row.all.count);
  const float keys = larger(0.4f * expf(-0.5f * place * place), 0.05f) * count / row.deviation;
  return {row.mean + row.deviation * place, keys};
}

// Keys by which a guess passes its target, so that this lies between two guesses.
constexpr float kBeyond = 5.0f;

// The fewest of the largest weights of a row that hold the share `mass`, above 0, of all. `weights`: room for as many.
static Threshold threshold_by_mass(const Plan& plan, const float* row, int64_t length, float mass, float* weights) {
  const MassRow seen = weigh_row(plan, row, length, weights);
  const float wanted = mass * seen.all.mass * (1.0f - kLacking);
  MassBracket b = {seen.smallest, nextafterf(seen.largest, INFINITY), seen.all, {0.0f, 0}};
  Guess guess = guess_mass(plan, seen, mass);
  for (int turn = 0; b.from_low.count - b.from_high.count > kWidth; turn++) {
    if (!(b.low < guess.value && guess.value < b.high)) {
      const float share = (b.from_low.mass - wanted) / (b.from_low.mass - b.from_high.mass);
      guess.value = b.low + (b.high - b.low) * (turn % 2 == 0 ? share : 0.5f);
    }
    if (turn >= kGuesses || !(b.low < guess.value && guess.value < b.high)) {
      const int64_t low = ordinal(b.low), high = ordinal(b.high);
      if (high - low == 1) return tie_by_mass(row, b, wanted);
      guess.value = of_ordinal(low + (high - low) / 2);
    }
    const Held held = held_from(row, weights, length, guess.value);
    const bool reached = held.mass >= wanted;
    (reached ? b.low : b.high) = guess.value;
    (reached ? b.from_low : b.from_high) = held;
    const float weight = larger(exp2f((guess.value - seen.largest) * plan.exponent), FLT_MIN);  // of a key there
    guess.value += ((held.mass - wanted) / weight + (reached ? kBeyond : -kBeyond)) / guess.step;
  }
  return rank_by_mass(row, weights, length, b, wanted);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
