// Finds the threshold of a row: the score of rank k, or the score whose softmax weight a row must exceed. Scores lie in
// key order, in whole tiles, -inf where a key is forbidden; none is NaN.
//
// The k-th largest is found by counting. A pass that counts the scores below a value takes one comparison and one
// addition for each vector, far less than sorting or a histogram. A sample tells roughly where to look. One pass
// collects the scores near there, and counts those above. Among the few that were collected, values are guessed, each
// from the counts before it, until at most a vector of scores is left between a value that is too low and one that is
// too high. Those scores are ranked.
#pragma once

#include "common/dtypes.h"
#include "common/row_rules.h"
#include "common/threshold.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Scores of `length` that are less than `value`.
static int64_t count_below(const float* row, int64_t length, float value) {
  static_assert(kTile % (4 * kWidth) == 0, "four vectors at once");
  const Vec limit = broadcast(value);
  int64_t below[4] = {};
  for (int64_t at = 0; at < length; at += 4 * kWidth) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) below[i] += __builtin_popcount(bits(greater(limit, load(row + at + i * kWidth))));
  }
  return (below[0] + below[1]) + (below[2] + below[3]);
}

DYNATTN_INLINE void sort_pair(Vec& first, Vec& second) {
  const Vec high = max(first, second);
  second = min(first, second);
  first = high;
}

// Each lane of eight vectors sorted by itself, largest first, by the network of 19 comparators.
DYNATTN_INLINE void sort_eight(Vec s[8]) {
  sort_pair(s[0], s[2]), sort_pair(s[1], s[3]), sort_pair(s[4], s[6]), sort_pair(s[5], s[7]);
  sort_pair(s[0], s[4]), sort_pair(s[1], s[5]), sort_pair(s[2], s[6]), sort_pair(s[3], s[7]);
  sort_pair(s[0], s[1]), sort_pair(s[2], s[3]), sort_pair(s[4], s[5]), sort_pair(s[6], s[7]);
  sort_pair(s[2], s[4]), sort_pair(s[3], s[5]);
  sort_pair(s[1], s[4]), sort_pair(s[3], s[6]);
  sort_pair(s[1], s[2]), sort_pair(s[3], s[4]), sort_pair(s[5], s[6]);
}

// Where the k-th largest may lie, and by how much a score changes from one rank to the next there.
struct Guess {
  float value, step;
};

// Forbidden scores of a sample become the smallest of those allowed.
static __attribute__((noinline)) void replace_forbidden(Vec s[8]) {
  const Vec forbidden = broadcast(-INFINITY);
  Vec largest = forbidden;  // of the negated
  for (int i = 0; i < 8; i++) {
    largest = max(largest, select(greater(s[i], forbidden), sub(zero(), s[i]), forbidden));
  }
  const Vec smallest = broadcast(-reduce_max(largest));
  for (int i = 0; i < 8; i++) s[i] = max(s[i], smallest);
}

// From eight vectors of a row of `keys`: the scores of a lane in order stand, on average, at ninths of the ranks.
static Guess guess_rank(const float* row, int64_t keys, int64_t wanted) {
  constexpr int kSample = 8;
  const int64_t vectors = larger<int64_t>(keys / kWidth, 1);
  Vec s[kSample];
#pragma GCC unroll 8
  for (int i = 0; i < kSample; i++) s[i] = load(row + (2 * i + 1) * vectors / (2 * kSample) * kWidth);
  const Vec low = min(min(min(s[0], s[1]), min(s[2], s[3])), min(min(s[4], s[5]), min(s[6], s[7])));
  if (bits(greater(broadcast(-FLT_MAX), low)) != 0) replace_forbidden(s);
  sort_eight(s);
  const float rank = static_cast<float>(wanted) / static_cast<float>(keys) * (kSample + 1) - 1.0f;
  const int place = smaller(larger(static_cast<int>(rank), 0), kSample - 2);
  const Vec apart = sub(s[place], s[place + 1]);
  const Vec value = fmadd(broadcast(static_cast<float>(place) - rank), apart, s[place]);
  return {reduce_add(value) / kWidth, reduce_add(apart) / kWidth * (kSample + 1) / static_cast<float>(keys)};
}

// The k-th largest lies in [low, high); so many scores are low or more, and high or more.
struct Bracket {
  float low, high;
  int64_t from_low, from_high;
};

// The k-th largest: so many scores are above it, and so many reach it.
struct Found {
  float value;
  int64_t above, reach;
};

// Scores of a row in [low, high), side by side, padded with -inf to whole fours of vectors.
struct Collected {
  float* scores;
  int64_t count, length;
  int64_t above;  // scores of the row that are `high` or more
};

static Collected collect(const float* row, int64_t length, float low, float high, float* room) {
  const Vec start = broadcast(low), end = broadcast(high);
  int64_t count = 0, below = 0;
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(row + at);
    const uint32_t under = bits(greater(end, x)), inside = under & ~bits(greater(start, x));
    store_any(room + count, compress(inside, x));
    count += __builtin_popcount(inside);
    below += __builtin_popcount(under);
  }
  for (int i = 0; i < 4; i++) store_any(room + count + i * kWidth, broadcast(-INFINITY));
  return {room, count, round_up(count, 4 * kWidth), length - below};
}

// The `wanted`-th largest among the scores of a bracket, at most a vector of them: each is compared with all.
static Found rank_few(const float* scores, int64_t length, const Bracket& b, int64_t wanted) {
  alignas(64) float few[3 * kWidth];
  const Vec low = broadcast(b.low), high = broadcast(b.high), one = broadcast(1.0f);
  int count = 0;
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(scores + at);
    const uint32_t inside = bits(greater(high, x)) & ~bits(greater(low, x));
    store_any(few + count, compress(inside, x));
    count += __builtin_popcount(inside);
  }
  store_any(few + count, broadcast(-INFINITY));
  const Vec all = load(few);
  Vec larger_ones[2] = {zero(), zero()};
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i++) {
    Vec& sum = larger_ones[i % 2];
    sum = select(greater(broadcast(few[i]), all), add(sum, one), sum);
  }
  const Vec rank = broadcast(static_cast<float>(wanted - b.from_high));
  const Mask kept = greater(rank, add(larger_ones[0], larger_ones[1]));
  const float value = -reduce_max(select(kept, sub(zero(), all), broadcast(-INFINITY)));
  return {value, b.from_high + __builtin_popcount(bits(greater(all, broadcast(value)))),
          b.from_high + __builtin_popcount(bits(kept))};
}

// Turns in which values are guessed, before the bracket is halved: halving ends after 32 at the latest.
constexpr int kGuesses = 12;

// The `wanted`-th largest in a bracket; `beyond` scores that are larger are not among those given.
static Found search(const float* scores, int64_t length, int64_t beyond, Bracket b, int64_t wanted, Guess guess) {
  for (int turn = 0; b.from_low - b.from_high > kWidth; turn++) {
    if (turn >= kGuesses || !(b.low < guess.value && guess.value < b.high)) {
      const int64_t low = ordinal(b.low), high = ordinal(b.high);
      if (high - low == 1) return {b.low, b.from_high, b.from_low};
      guess.value = of_ordinal(low + (high - low) / 2);
    }
    const int64_t from = beyond + length - count_below(scores, length, guess.value);
    if (from == wanted) return {guess.value, b.from_high, from};
    if (from > wanted) {
      b.low = guess.value, b.from_low = from;
    } else {
      b.high = guess.value, b.from_high = from;
    }
    if (b.low > -FLT_MAX && b.high < INFINITY) {  // as if scores were evenly spread between the two
      const float share = static_cast<float>(b.from_low - wanted) / static_cast<float>(b.from_low - b.from_high);
      guess.value = b.low + (b.high - b.low) * share;
    } else {  // beyond the target, so that it lies between the two
      guess.value += guess.step * 1.25f * static_cast<float>(from - wanted);
      guess.step *= 2.0f;
    }
  }
  return rank_few(scores, length, b, wanted);
}

// The key of the `count`-th score that equals `value`.
static int32_t key_of_tie(const float* row, float value, int64_t count) {
  const Vec wanted = broadcast(value);
  for (int64_t at = 0;; at += kWidth) {
    const Vec x = load(row + at);
    uint32_t ties = first_lanes(kWidth) & ~(bits(greater(x, wanted)) | bits(greater(wanted, x)));
    const int here = __builtin_popcount(ties);
    if (here < count) {
      count -= here;
      continue;
    }
    while (--count > 0) ties &= ties - 1;
    return static_cast<int32_t>(at) + __builtin_ctz(ties);
  }
}

// How far around the guess scores are collected, in standard deviations of the error of such a sample.
constexpr float kReach = 2.0f;

// The `wanted` largest of the `allowed` scores of a row of `keys`. `room`: for as many scores, and four vectors more.
static Threshold threshold_by_rank(const float* row, int64_t keys, int64_t allowed, int64_t wanted, float* room) {
  if (wanted >= allowed) return kKeepAllowed;
  const int64_t length = round_up(keys, kTile);
  const Guess guess = guess_rank(row, keys, wanted);
  const float share = static_cast<float>(wanted) / static_cast<float>(keys);
  const float ranks = kReach * static_cast<float>(keys) * sqrtf(share * (1.0f - share) / (8 * kWidth)) + 2.0f;
  const float below = guess.value - ranks * guess.step, above = guess.value + ranks * guess.step;
  const float low = below > -FLT_MAX ? below : -FLT_MAX, high = above < INFINITY ? above : INFINITY;  // or NaN
  const Collected near = collect(row, length, low, high, room);
  const int64_t from_high = near.above, from_low = near.above + near.count;
  Found found;
  if (from_high < wanted && wanted <= from_low) {
    found = search(near.scores, near.length, near.above, {low, high, from_low, from_high}, wanted, guess);
  } else if (wanted <= from_high) {
    found = search(row, length, 0, {high, INFINITY, from_high, 0}, wanted, guess);
  } else {
    found = search(row, length, 0, {-FLT_MAX, low, allowed, from_low}, wanted, guess);
  }
  return {found.value, found.reach == wanted ? kAllTies : key_of_tie(row, found.value, wanted - found.above)};
}

static float largest_of(const float* row, int64_t length) {
  Vec largest = broadcast(-INFINITY);
  for (int64_t at = 0; at < length; at += kWidth) largest = max(largest, load(row + at));
  return reduce_max(largest);
}

// The scores whose softmax weight exceeds `weight`, as a score: weights grow with scores. And the first of the largest.
static Threshold threshold_by_weight(const Plan& plan, const float* row, int64_t length, float weight) {
  const float largest = largest_of(row, length);
  const Vec reference = broadcast(largest), exponent = broadcast(plan.exponent), floor = broadcast(plan.floor);
  Vec sum = zero();
  for (int64_t at = 0; at < length; at += kWidth) {
    const Vec x = load(row + at), share = exp2_scaled(sub(x, reference), exponent, floor);
    sum = add(sum, select(greater(broadcast(-FLT_MAX), x), zero(), share));  // with a tiny exponent no weight is 0
  }
  const float depth = depth_of_weight(weight, reduce_add(sum), plan.exponent);
  if (!(depth > 0.0f)) return {largest, key_of_tie(row, largest, 1)};
  if (!(depth < INFINITY)) return kKeepAllowed;
  return {line_at_depth(largest, depth), kAllTies};
}

}  // namespace dynattn::DYNATTN_NAMESPACE
