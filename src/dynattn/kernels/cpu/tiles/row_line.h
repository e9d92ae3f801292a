// Finds for 16 queries at once what each keeps by its own scores: the line that a score has to reach, and the last key of
// those that lie on it. As rows/find_threshold.h and rows/find_mass.h do it for one row.
//
// By rank and by mass, two scores bracket the line of each query and come nearer, until few keys are left between them or
// all of these have one score. A pass over the keys tries a score for every query. By rank every key weighs 1.
#pragma once

#include "common/row_rules.h"
#include "tiles/softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kFewKeys = 16;       // between two scores: these are listed and put in order
constexpr int kGuessedTurns = 12;  // then the bracket is halved, which ends after 32

// Scores of a group of queries, of all blocks of keys: key by key, kQueries apart, -inf where forbidden.
struct GroupScores {
  const float* scores;
  float* weights;       // [key][kLanes], by mass; relative to each query's largest
  const uint8_t* live;  // [block of keys]: 0 where nothing is allowed, and nothing was written
  int64_t blocks;
  int block_keys;
};

// What a query keeps: scores above `least`, and of those equal to it the keys up to `last`.
struct RowLines {
  alignas(64) float least[kLanes];
  alignas(64) float last[kLanes];  // a number of a key; infinite for all
};

struct RowStatistics {
  alignas(64) float largest[kLanes], smallest[kLanes], sum[kLanes], squares[kLanes];
  alignas(64) uint32_t allowed[kLanes];
};

// body(scores of a key, number of the key), of all keys of live blocks; `after` is called behind each block.
template <class Body, class After>
DYNATTN_INLINE void each_key(const GroupScores& group, Body body, After after) {
  for (int64_t block = 0; block < group.blocks; block++) {
    if (group.live[block] == 0) continue;
    const int64_t first = block * group.block_keys;
#pragma GCC unroll 4
    for (int64_t key = first; key < first + group.block_keys; key++) {
      body(load_lanes(group.scores + key * kQueries), key);
    }
    after();
  }
}

static void see_rows(const GroupScores& group, RowStatistics& to) {
  const Lanes forbidden = broadcast_lanes(-INFINITY), infinity = broadcast_lanes(INFINITY), none = broadcast_lanes(0.0f);
  const Words one = broadcast_words(1);
  Lanes largest = forbidden, smallest = infinity, sum = none, squares = none;
  Words allowed = broadcast_words(0);
  each_key(group, [&](Lanes x, int64_t) {
    const LaneMask some = greater(x, forbidden);
    const Lanes y = select(some, x, none);
    largest = max(largest, x), smallest = min(smallest, select(some, x, infinity));
    sum = add(sum, y), squares = fmadd(y, y, squares);
    allowed = add(allowed, only(some, one));
  }, [] {});
  store(to.largest, largest), store(to.smallest, smallest), store(to.sum, sum), store(to.squares, squares);
  store(to.allowed, allowed);
}

// Weights relative to the largest; their sums, added up block by block so that long rows lose nothing.
template <bool kKeep>
static void weigh_rows(const TilePlan& plan, const GroupScores& group, const RowStatistics& seen, float* sums) {
  const Lanes largest = load_lanes(seen.largest), exponent = broadcast_lanes(plan.exponent);
  Lanes all = broadcast_lanes(0.0f), even = all, odd = all;
  each_key(group, [&](Lanes x, int64_t key) {
    const Lanes weight = exp2_lanes(mul(sub(x, largest), exponent));
    const Lanes some = select(greater(x, broadcast_lanes(-INFINITY)), weight, broadcast_lanes(0.0f));
    if (kKeep) store(group.weights + key * kLanes, some);
    Lanes& part = key % 2 ? odd : even;
    part = add(part, some);
  }, [&] { all = add(all, add(even, odd)), even = odd = broadcast_lanes(0.0f); });
  store(sums, all);
}

// The key of the `count`-th score of a query that equals `value`.
static float number_of_tie(const GroupScores& group, int lane, float value, int64_t count) {
  for (int64_t key = 0; key < group.blocks * group.block_keys; key++) {
    if (group.live[key / group.block_keys] == 0 || group.scores[key * kQueries + lane] != value) continue;
    if (--count <= 0) return static_cast<float>(key);
  }
  return INFINITY;
}

// By weight: the scores whose softmax weight exceeds `weight`, and the first of the largest.
static void lines_by_weight(const TilePlan& plan, const GroupScores& group, const RowStatistics& seen, float weight,
                            RowLines& lines) {
  alignas(64) float sums[kLanes];
  weigh_rows<false>(plan, group, seen, sums);
  for (int lane = 0; lane < kLanes; lane++) {
    const float largest = seen.largest[lane];
    lines.least[lane] = -FLT_MAX, lines.last[lane] = INFINITY;
    if (seen.allowed[lane] == 0) continue;
    const float depth = depth_of_weight(weight, sums[lane], plan.exponent);
    if (!(depth > 0.0f)) {
      lines.least[lane] = largest, lines.last[lane] = number_of_tie(group, lane, largest, 1);
    } else if (depth < INFINITY) {
      lines.least[lane] = line_at_depth(largest, depth);
    }
  }
}

// What the scores that reach a value hold, and how many they are.
struct HeldLanes {
  alignas(64) float mass[kLanes];
  alignas(64) uint32_t count[kLanes];
};

// What lies below is added up, which is less work: forbidden scores are below every value, and weigh nothing.
template <bool kMass>
static void hold_from(const GroupScores& group, const float* values, const float* all, HeldLanes& held) {
  const Lanes limit = load_lanes(values);
  const Words one = broadcast_words(1);
  Lanes below = broadcast_lanes(0.0f), even = below, odd = below;
  Words counts[2] = {broadcast_words(0), broadcast_words(0)};
  uint32_t keys = 0;
  each_key(group, [&](Lanes x, int64_t key) {
    const LaneMask under = greater(limit, x);
    counts[key % 2] = add_where(under, counts[key % 2], one);
    if (!kMass) return;
    Lanes& part = key % 2 ? odd : even;
    part = add_where(under, part, load_lanes(group.weights + key * kLanes));
  }, [&] {
    below = add(below, add(even, odd)), even = odd = broadcast_lanes(0.0f);
    keys += static_cast<uint32_t>(group.block_keys);
  });
  alignas(64) float lost[kLanes];
  alignas(64) uint32_t under[kLanes];
  store(lost, below), store(under, add(counts[0], counts[1]));
  for (int lane = 0; lane < kLanes; lane++) {
    held.count[lane] = keys - under[lane];
    held.mass[lane] = kMass ? all[lane] - lost[lane] : static_cast<float>(held.count[lane]);
  }
}

// The share is reached by a query's scores from `low` on, and not by those from `high` on.
struct LaneBrackets {
  alignas(64) float low[kLanes], high[kLanes], guess[kLanes];
  HeldLanes from_low, from_high;
  alignas(64) float all[kLanes];
  float wanted[kLanes];
  float slope[kLanes];  // keys in a unit of scores, near the guess
  LaneMask tied;        // all keys between the two have one score

  uint32_t between(int lane) const { return from_low.count[lane] - from_high.count[lane]; }
};

constexpr float kBeyond = 5.0f;  // keys by which a guess passes its target, so that this lies between two guesses

// Makes a guess that lies between the two scores, or sees that there is none.
static void settle_guess(LaneBrackets& b, int lane, int turn) {
  if (turn < kGuessedTurns) {
    if (b.low[lane] < b.guess[lane] && b.guess[lane] < b.high[lane]) return;
    const float spread = b.from_low.mass[lane] - b.from_high.mass[lane];
    const float share = turn % 2 == 0 ? (b.from_low.mass[lane] - b.wanted[lane]) / spread : 0.5f;
    b.guess[lane] = b.low[lane] + (b.high[lane] - b.low[lane]) * share;
    if (b.low[lane] < b.guess[lane] && b.guess[lane] < b.high[lane]) return;
  }
  const int64_t low = ordinal(b.low[lane]), high = ordinal(b.high[lane]);
  b.guess[lane] = of_ordinal(low + (high - low) / 2);
  if (high - low <= 1) b.tied |= static_cast<LaneMask>(1u << lane);
}

// The guess becomes one of the two scores. The next one passes the target by a few keys, by as many keys to a unit of
// scores as lie between the two, where both are guesses. `weight`: of a key near the guess.
static void move_bracket(LaneBrackets& b, int lane, float mass, uint32_t count, float weight) {
  const float guess = b.guess[lane];
  const bool reached = mass >= b.wanted[lane];
  HeldLanes& side = reached ? b.from_low : b.from_high;
  side.mass[lane] = mass, side.count[lane] = count;
  (reached ? b.low : b.high)[lane] = guess;
  const float missing = (mass - b.wanted[lane]) / weight + (reached ? kBeyond : -kBeyond);  // keys
  b.guess[lane] = guess + missing / b.slope[lane];
}

// Narrows the brackets of the lanes that are open. `exponent`: of weights, by mass.
template <bool kMass>
static void narrow(const GroupScores& group, LaneMask open, const float* largest, float exponent, LaneBrackets& b) {
  HeldLanes held;
  for (int turn = 0;; turn++) {
    LaneMask many = 0;
    for (int lane = 0; lane < kLanes; lane++) {
      if (!(open >> lane & 1) || b.between(lane) <= kFewKeys) continue;
      settle_guess(b, lane, turn);
      if (!(b.tied >> lane & 1)) many |= static_cast<LaneMask>(1u << lane);
    }
    if (many == 0) return;
    alignas(64) float weights[kLanes];
    if (kMass) {
      const Lanes apart = sub(load_lanes(b.guess), load_lanes(largest));
      store(weights, max(exp2_lanes(mul(apart, broadcast_lanes(exponent))), broadcast_lanes(FLT_MIN)));
    }
    hold_from<kMass>(group, b.guess, b.all, held);
    for (int lane = 0; lane < kLanes; lane++) {
      if (many >> lane & 1) move_bracket(b, lane, held.mass[lane], held.count[lane], kMass ? weights[lane] : 1.0f);
    }
  }
}

// The keys of a query between its two scores, in their order.
struct FewKeys {
  alignas(64) float score[kFewKeys], mass[kFewKeys], key[kFewKeys];
  int count;
};

template <bool kMass>
static void list_few(const GroupScores& group, LaneMask listed, const LaneBrackets& b, FewKeys* few) {
  const Lanes low = load_lanes(b.low), high = load_lanes(b.high);
  each_key(group, [&](Lanes x, int64_t key) {
    unsigned inside = greater(high, x) & ~greater(low, x) & listed;
    for (; inside != 0; inside &= inside - 1) {
      const int lane = __builtin_ctz(inside);
      FewKeys& to = few[lane];
      to.score[to.count] = group.scores[key * kQueries + lane];
      to.mass[to.count] = kMass ? group.weights[key * kLanes + lane] : 1.0f;
      to.key[to.count++] = static_cast<float>(key);
    }
  }, [] {});
}

// The last one kept of those: a key is kept where what comes before it does not hold enough. A key a lane.
static void line_of_few(const FewKeys& few, float held, float wanted, int lane, RowLines& lines) {
  const LaneMask present = static_cast<LaneMask>((1u << few.count) - 1);
  const Lanes scores = load_lanes(few.score);
  Lanes before = broadcast_lanes(held);
  for (int i = 0; i < few.count; i++) {
    const Lanes score = broadcast_lanes(few.score[i]);
    const unsigned later = ~0u << (i + 1);
    const LaneMask first = static_cast<LaneMask>(greater(score, scores) | (~greater(scores, score) & later));
    before = add_where(first, before, broadcast_lanes(few.mass[i]));
  }
  unsigned kept = greater(broadcast_lanes(wanted), before) & present;
  int last = -1;  // of those kept, that of the lowest score, of equal ones the one of the highest key
  for (; kept != 0; kept &= kept - 1) {
    const int i = __builtin_ctz(kept);
    if (last < 0 || few.score[i] <= few.score[last]) last = i;
  }
  bool more = false;
  for (int i = last + 1; i < few.count; i++) more |= few.score[i] == few.score[last];
  lines.least[lane] = few.score[last], lines.last[lane] = more ? few.key[last] : INFINITY;
}

// Where all keys of the bracket have one score.
static void line_of_ties(const GroupScores& group, const LaneBrackets& b, int lane, RowLines& lines) {
  const float ties = static_cast<float>(b.between(lane)), missing = b.wanted[lane] - b.from_high.mass[lane];
  const float share = missing * ties / (b.from_low.mass[lane] - b.from_high.mass[lane]);
  const int64_t count = larger<int64_t>(1, static_cast<int64_t>(ceilf(share)));
  lines.least[lane] = b.low[lane];
  lines.last[lane] = share <= ties - 1.0f ? number_of_tie(group, lane, b.low[lane], count) : INFINITY;
}

template <bool kMass>
static void find_lines(const GroupScores& group, LaneMask open, const float* largest, float exponent, LaneBrackets& b,
                       RowLines& lines) {
  narrow<kMass>(group, open, largest, exponent, b);
  FewKeys few[kLanes];
  LaneMask listed = 0;
  for (int lane = 0; lane < kLanes; lane++) {
    few[lane].count = 0;
    if ((open >> lane & 1) && b.between(lane) <= kFewKeys) listed |= static_cast<LaneMask>(1u << lane);
  }
  list_few<kMass>(group, listed, b, few);
  for (int lane = 0; lane < kLanes; lane++) {
    if (listed >> lane & 1) {
      line_of_few(few[lane], b.from_high.mass[lane], b.wanted[lane], lane, lines);
    } else if (open >> lane & 1) {
      line_of_ties(group, b, lane, lines);
    }
  }
}

// Brackets around all scores of a query.
static void open_brackets(const RowStatistics& seen, LaneBrackets& b) {
  b.tied = 0;
  for (int lane = 0; lane < kLanes; lane++) {
    b.low[lane] = seen.smallest[lane], b.high[lane] = nextafterf(seen.largest[lane], INFINITY);
    b.from_low.mass[lane] = b.all[lane], b.from_low.count[lane] = seen.allowed[lane];
    b.from_high.mass[lane] = 0.0f, b.from_high.count[lane] = 0;
  }
}

// The quantile of a normal distribution that `upper` of it, between 0 and 1, lies above; off by 0.01 at most where it is
// between -3 and 3 (Tukey's lambda).
static float normal_quantile(float upper) { return 4.91f * (powf(1.0f - upper, 0.14f) - powf(upper, 0.14f)); }

// The first guess, and how many keys lie in a unit of scores there, as if scores were spread normally. `shift`: in
// standard deviations' squares, from the distribution of keys to that of what they weigh.
static void guess_normally(const RowStatistics& seen, int lane, float quantile, float shift, LaneBrackets& b) {
  const float count = static_cast<float>(seen.allowed[lane]), mean = seen.sum[lane] / count;
  const float variance = larger(seen.squares[lane] / count - mean * mean, FLT_MIN), deviation = sqrtf(variance);
  const float place = shift * deviation + quantile;
  b.guess[lane] = mean + deviation * place;
  b.slope[lane] = larger(count * 0.39894f * expf(-0.5f * place * place), 0.05f * count) / deviation;
}

// By mass: the fewest of the largest weights that hold the share of all.
static void lines_by_mass(const TilePlan& plan, const GroupScores& group, const RowStatistics& seen, float mass,
                          RowLines& lines) {
  LaneBrackets b;
  weigh_rows<true>(plan, group, seen, b.all);
  open_brackets(seen, b);
  LaneMask open = 0;
  const float quantile = normal_quantile(mass), shift = plan.exponent * static_cast<float>(kLog2);
  for (int lane = 0; lane < kLanes; lane++) {
    lines.least[lane] = -FLT_MAX, lines.last[lane] = INFINITY;
    b.wanted[lane] = mass * b.all[lane] * (1.0f - kLacking);
    if (seen.allowed[lane] == 0) continue;
    open |= static_cast<LaneMask>(1u << lane);
    guess_normally(seen, lane, quantile, shift, b);
  }
  find_lines<true>(group, open, seen.largest, plan.exponent, b, lines);
}

// By rank: the largest scores, as many as the rule says of those allowed.
static void lines_by_rank(const RowForwardArgs& rule, const GroupScores& group, const RowStatistics& seen,
                          RowLines& lines) {
  LaneBrackets b;
  for (int lane = 0; lane < kLanes; lane++) b.all[lane] = static_cast<float>(seen.allowed[lane]);
  open_brackets(seen, b);
  LaneMask open = 0;
  float share_before = -1.0f, quantile = 0.0f;
  for (int lane = 0; lane < kLanes; lane++) {
    lines.least[lane] = -FLT_MAX, lines.last[lane] = INFINITY;
    const int64_t allowed = seen.allowed[lane];
    const int64_t wanted = wanted_by_rank(rule, allowed);
    if (wanted >= allowed) continue;
    open |= static_cast<LaneMask>(1u << lane);
    b.wanted[lane] = static_cast<float>(wanted);
    const float upper = b.wanted[lane] / b.all[lane];
    if (upper != share_before) quantile = normal_quantile(upper);
    share_before = upper;
    guess_normally(seen, lane, quantile, 0.0f, b);
  }
  if (open != 0) find_lines<false>(group, open, seen.largest, 0.0f, b, lines);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
