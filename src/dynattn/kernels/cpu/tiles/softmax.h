// Choice and weights of 16 queries and a block of keys: scores in, pairs of bfloat16 weights out.
//
// A query's weights are relative to a reference of its own. The fast variant takes it from the first block of keys and
// never changes it: sums and weights are floats, so that later scores may be 2^100 times larger in weight at no loss.
// What exceeds that is seen at the end, and the queries are done again by the careful variant, which follows each
// query's largest score, tells forbidden, infinite and NaN scores apart, and marks what is not kept.
#pragma once

#include <float.h>

#include "tiles/allowed.h"
#include "tiles/lanes.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr uint32_t kNotKept = 0x8000u;  // a weight of -0, in careful blocks

// What 16 queries have accumulated.
struct LaneState {
  Lanes origin;     // largest score so far, in the careful variant; else 0
  Lanes reference;  // an integer; a weight is 2^((score - origin) · exponent - reference)
  Lanes sum;        // of weights as rounded to bfloat16, which the output is divided by
  Lanes total;      // of kept weights before that
  Lanes dropped;    // of weights not kept
  Lanes passed;     // largest score of a block that was too low for a reference
  Lanes most;       // largest score so far, where runs are skipped by it
  Words kept, allowed;
  Words overflow;   // bits above the 15th: a weight that bfloat16 does not hold
  LaneMask open;    // queries that have a reference
  LaneMask nan, infinite;
};

static void clear(LaneState& state) {
  state.reference = state.sum = state.total = state.dropped = broadcast_lanes(0.0f);
  state.origin = state.passed = state.most = broadcast_lanes(-INFINITY);
  state.kept = state.allowed = state.overflow = broadcast_words(0);
  state.open = state.nan = state.infinite = 0;
}

// Scores and weights of 16 queries.
struct ScoreTile {
  float* scores;      // [key][kQueries]
  uint32_t* weights;  // [pair of places][kLanes], or [pick][kLanes]
  uint32_t* picked;   // [pick][kLanes]: for each byte of a pick's word, where it is in the pick's span of places
  int keys;           // scored, all of them of the key block
};

DYNATTN_INLINE float* score_row(const ScoreTile& tile, int64_t key) { return tile.scores + key * kQueries; }
DYNATTN_INLINE Lanes score(const ScoreTile& tile, int64_t key) { return load_lanes(score_row(tile, key)); }
DYNATTN_INLINE uint32_t* pair_row(const ScoreTile& tile, int64_t place) { return tile.weights + place / 2 * kLanes; }

// Weights one place's at a time.
DYNATTN_INLINE void put_weight(const ScoreTile& tile, int64_t place, Words weight) {
  const Words there = load_words(pair_row(tile, place));
  store(pair_row(tile, place), place % 2 ? either(both(there, broadcast_words(0xffffu)), shift_left<16>(weight))
                                         : either(both(there, broadcast_words(0xffff0000u)), weight));
}

// Forbidden scores become -inf, whatever they were, and a bias is added to the others.
static void mask_scores(const TilePlan& plan, const Allowed& allowed, int group, const ScoreTile& tile) {
  const Lanes forbidden = broadcast_lanes(-INFINITY), multiplier = broadcast_lanes(plan.multiplier);
  for (int key = 0; key < tile.keys; key++) {
    Lanes x = score(tile, key);
    if (plan.biased) x = fmadd(x, multiplier, load_lanes(allowed.bias + key * kQueries + group * kLanes));
    const LaneMask pairs = static_cast<LaneMask>(allowed.pairs[key] >> (group * kLanes));
    store(score_row(tile, key), select(pairs, x, forbidden));
  }
}

constexpr int kMaxMembers = 32;

// A member's rank is the number of those of its group that beat it: later ones by being larger, earlier ones by being as
// large.
DYNATTN_INLINE void rank_members(const Lanes* x, int m, Lanes* rank) {
  const Lanes one = broadcast_lanes(1.0f);
  for (int i = 0; i < m; i++) {
    rank[i] = broadcast_lanes(0.0f);
    for (int j = 0; j < i; j++) {
      const LaneMask later = greater(x[i], x[j]);
      rank[j] = select(later, add(rank[j], one), rank[j]);
      rank[i] = select(later, rank[i], add(rank[i], one));
    }
  }
}

// Scores that are not chosen, and those that are chosen but out of reach, become -inf: a choice among what is left is
// then the choice itself. NaN and infinity rank as the largest float, and stay as they are where they are kept.
static void cut_scores(const TilePlan& plan, const Allowed& allowed, int group, const ScoreTile& tile) {
  const Lanes infinity = broadcast_lanes(INFINITY), forbidden = broadcast_lanes(-INFINITY);
  const Lanes largest = broadcast_lanes(FLT_MAX), wanted = broadcast_lanes(static_cast<float>(plan.n) - 0.5f);
  for (int start = 0; start < tile.keys; start += plan.m * plan.stride) {
    for (int first = start; first < start + plan.stride; first++) {
      Lanes x[kMaxMembers], rank[kMaxMembers];
      for (int i = 0; i < plan.m; i++) {
        const Lanes own = score(tile, first + i * plan.stride);
        x[i] = select(greater(infinity, own), own, largest);
      }
      rank_members(x, plan.m, rank);
      for (int i = 0; i < plan.m; i++) {
        const int key = first + i * plan.stride;
        const unsigned forced = allowed.force ? allowed.forced[key] >> (group * kLanes) : 0;
        const unsigned kept = (greater(wanted, rank[i]) | forced) & (allowed.within[key] >> (group * kLanes));
        store(score_row(tile, key), select(static_cast<LaneMask>(kept), score(tile, key), forbidden));
      }
    }
  }
}

static Lanes largest_score(const ScoreTile& tile) {
  Lanes even = score(tile, 0), odd = score(tile, tile.keys > 1 ? 1 : 0);
  for (int key = 2; key < tile.keys; key++) {
    Lanes& largest = key % 2 ? odd : even;
    largest = max(largest, score(tile, key));
  }
  return max(even, odd);
}

// The fast variant: queries that have no reference yet take it from this block, where its scores are not all
// forbidden, or so low that they can matter only beside others like them: those are looked at again at the end.
static void open_lanes(const TilePlan& plan, const ScoreTile& tile, LaneState& state) {
  const Lanes largest = largest_score(tile), scaled = mul(largest, broadcast_lanes(plan.exponent));
  const LaneMask closed = static_cast<LaneMask>(~state.open);
  const LaneMask high = closed & greater(scaled, broadcast_lanes(-2.0f * kReach));
  state.reference = select(high, round_lanes(scaled), state.reference);
  state.passed = select(static_cast<LaneMask>(closed & ~high), max(state.passed, largest), state.passed);
  state.open |= high;
}

// True where the fast variant's numbers do not hold for some of `lanes`.
static bool must_repeat(const TilePlan& plan, const LaneState& state, LaneMask lanes) {
  const Lanes passed = mul(state.passed, broadcast_lanes(plan.exponent));
  const LaneMask low = greater(state.passed, broadcast_lanes(-INFINITY));
  const LaneMask near = greater(passed, sub(state.reference, broadcast_lanes(256.0f)));
  const LaneMask lost = low & static_cast<LaneMask>(~state.open | near);
  const LaneMask bits = nonzero(both(state.overflow, broadcast_words(0xffff8000u)));
  const LaneMask finite = greater(broadcast_lanes(INFINITY), state.sum);
  return (lanes & static_cast<LaneMask>(lost | bits | static_cast<LaneMask>(~finite))) != 0;
}

// The careful variant: scores that are NaN or +inf mark their query, and go on as the largest float, so that they are
// kept.
static void clean_scores(const ScoreTile& tile, LaneState& state) {
  const Lanes infinity = broadcast_lanes(INFINITY), largest = broadcast_lanes(FLT_MAX);
  for (int key = 0; key < tile.keys; key++) {
    const Lanes x = score(tile, key);
    const LaneMask below = greater(infinity, x), nan = is_nan(x);
    state.nan |= nan;
    state.infinite |= static_cast<LaneMask>(~(below | nan));
    store(score_row(tile, key), select(below, x, largest));
  }
}

// The careful variant: the origin follows the largest score, and what has been accumulated is scaled to it.
static void follow_largest(const TilePlan& plan, const ScoreTile& tile, LaneState& state, float* out) {
  const Lanes largest = largest_score(tile);
  const LaneMask grown = greater(largest, state.origin);
  if (grown == 0) return;
  const Lanes one = broadcast_lanes(1.0f);
  const Lanes factor =
      select(grown, exp2_lanes(mul(sub(state.origin, largest), broadcast_lanes(plan.exponent))), one);
  state.origin = select(grown, largest, state.origin);
  state.sum = mul(state.sum, factor);
  state.total = mul(state.total, factor);
  state.dropped = mul(state.dropped, factor);
  for (int64_t d = 0; d < plan.dims * kTileRows; d++) {
    store(out + d * kQueries, mul(load_lanes(out + d * kQueries), factor));
  }
}

// Weights straight to bfloat16; only those are summed.
struct RoundedWeights {
  Lanes exponent, shift, sum;
  Words overflow;

  RoundedWeights(const TilePlan& plan, const LaneState& state)
      : exponent(broadcast_lanes(plan.exponent)),
        shift(sub(broadcast_lanes(127.0f), state.reference)),
        sum(state.sum),
        overflow(state.overflow) {}
  inline __attribute__((always_inline)) Words operator()(Lanes x) {
    const Words bits = exp2_bfloat16(fmadd(x, exponent, shift));
    overflow = either(overflow, bits);
    sum = add(sum, low_half(bits));
    return bits;
  }
  void finish(LaneState& state) const {
    state.sum = sum;
    state.overflow = overflow;
  }
};

// Weights in float32, then rounded; both are summed.
struct ExactWeights {
  Lanes exponent, origin, reference, sum, total;

  ExactWeights(const TilePlan& plan, const LaneState& state)
      : exponent(broadcast_lanes(plan.exponent)),
        origin(select(greater(state.origin, broadcast_lanes(-INFINITY)), state.origin, broadcast_lanes(0.0f))),
        reference(state.reference),
        sum(state.sum),
        total(state.total) {}
  inline __attribute__((always_inline)) Lanes weight(Lanes x) const {
    return exp2_lanes(fmsub(sub(x, origin), exponent, reference));
  }
  inline __attribute__((always_inline)) Words operator()(Lanes x) { return count(weight(x)); }
  inline __attribute__((always_inline)) Words count(Lanes w) {
    const Words bits = rounded(w);
    total = add(total, w);
    sum = add(sum, low_half(bits));
    return bits;
  }
  void finish(LaneState& state) const {
    state.sum = sum;
    state.total = total;
  }
};

// Ones where a pair is kept, and no weight: the choice of the functions below by itself.
struct Marks {
  Marks() = default;
  Marks(const TilePlan&, const LaneState&) {}
  Words operator()(Lanes) const { return broadcast_words(0xffffu); }
  Lanes weight(Lanes) const { return broadcast_lanes(1.0f); }
  Words count(Lanes w) const { return only(greater(w, broadcast_lanes(0.0f)), broadcast_words(0xffffu)); }
  void finish(const LaneState&) const {}
};

// A weight that is kept, in the low half of each word, and which of its group it is: its number has these bits.
struct Kept {
  Words weight;
  LaneMask one, two;
};

// 1:2. A later member is kept where it is larger.
template <class Weights>
DYNATTN_INLINE void choose(const Lanes (&x)[2], Weights& weights, Kept (&kept)[1]) {
  kept[0] = {weights(max(x[1], x[0])), greater(x[1], x[0]), 0};
}

// 1:4.
template <class Weights>
DYNATTN_INLINE void choose(const Lanes (&x)[4], Weights& weights, Kept (&kept)[1]) {
  const Lanes low = max(x[1], x[0]), high = max(x[3], x[2]);
  const LaneMask b = greater(x[1], x[0]), d = greater(x[3], x[2]), upper = greater(high, low);
  kept[0] = {weights(max(high, low)), static_cast<LaneMask>((upper & d) | (~upper & b)), upper};
}

// 2:4. A member is kept where at most one other beats it: a later one by being larger, an earlier one by being as large.
// The two that are kept are taken in the order of their places, so that each place has one of two weights.
template <class Weights>
DYNATTN_INLINE void choose(const Lanes (&x)[4], Weights& weights, Kept (&kept)[2]) {
  const unsigned ab = greater(x[1], x[0]), ac = greater(x[2], x[0]), ad = greater(x[3], x[0]);
  const unsigned bc = greater(x[2], x[1]), bd = greater(x[3], x[1]), cd = greater(x[3], x[2]);
  const LaneMask a = static_cast<LaneMask>(~((ab & ac) | (ab & ad) | (ac & ad)));
  const LaneMask b = static_cast<LaneMask>(~((~ab & bc) | (~ab & bd) | (bc & bd)));
  const LaneMask d = static_cast<LaneMask>((ad & bd) | (ad & cd) | (bd & cd));
  const LaneMask c = static_cast<LaneMask>((ac & bc) | (ac & ~cd) | (bc & ~cd));
  kept[0] = {weights(select(a, x[0], select(b, x[1], x[2]))), static_cast<LaneMask>(~a & b),
             static_cast<LaneMask>(~(a | b))};
  kept[1] = {weights(select(d, x[3], select(c, x[2], x[1]))), static_cast<LaneMask>(d | ~c),
             static_cast<LaneMask>(c | d)};
}

// Groups in the order of their places: body(scores, place of the first member).
template <int kM, class Body>
DYNATTN_INLINE void each_group(const ScoreTile& tile, int stride, Body body) {
  for (int start = 0; start < tile.keys; start += kM * stride) {
    for (int group = 0; group < stride; group++) {
      Lanes x[kM];
      for (int i = 0; i < kM; i++) x[i] = score(tile, start + group + i * stride);
      body(x, start + group * kM);
    }
  }
}

template <class Weights>
static void weigh_all(const ScoreTile& tile, Weights& weights) {
  for (int key = 0; key < tile.keys; key += 2) {
    const Words low = weights(score(tile, key)), high = weights(score(tile, key + 1));
    store(pair_row(tile, key), pair(low, high));
  }
}

// A weight for each place, 0 for those that are not kept.
template <int kN, int kM, class Weights>
static void spread_groups(const ScoreTile& tile, int stride, Weights& weights) {
  each_group<kM>(tile, stride, [&](const Lanes (&x)[kM], int place) {
    Kept kept[kN];
    choose(x, weights, kept);
    Words pairs[kM / 2];
    for (int i = 0; i < kN; i++) {
      const Words raised = raise_halves(kept[i].one, kept[i].weight);
      for (int half = 0; half < kM / 2; half++) {
        const LaneMask lanes = half == 0 ? static_cast<LaneMask>(~kept[i].two) : kept[i].two;
        const Words here = kM == 2 ? raised : only(lanes, raised);
        pairs[half] = i == 0 ? here : either(pairs[half], here);
      }
    }
    for (int half = 0; half < kM / 2; half++) store(pair_row(tile, place + 2 * half), pairs[half]);
  });
}

// Two weights that are kept, and which of the places of their one or two groups they stand for.
template <int kN, int kM, class Weights>
static void pick_groups(const ScoreTile& tile, int stride, Weights& weights) {
  constexpr uint32_t kSecond = kN == 1 ? kM : 0;  // the first member of the second weight's group
  const Words first = broadcast_words(0x01000100u + kSecond * 0x02020000u);
  Kept before = {};
  each_group<kM>(tile, stride, [&](const Lanes (&x)[kM], int place) {
    Kept kept[kN];
    choose(x, weights, kept);
    if (kN == 1 && place / kM % 2 == 0) {
      before = kept[0];
      return;
    }
    const Kept &low = kN == 1 ? before : kept[0], &high = kept[kN - 1];
    uint32_t* const weight = tile.weights + place * kN / kM / 2 * kLanes;
    Words picked = with_bits(low.one, with_bits(high.one, first, 0x02020000u), 0x0202u);
    if (kM == 4) picked = with_bits(low.two, with_bits(high.two, picked, 0x04040000u), 0x0404u);
    store(weight, pair(low.weight, high.weight));
    store(tile.picked + (weight - tile.weights), picked);
  });
}

// Where the number of what is kept has these bits, for one of four members or of two.
DYNATTN_INLINE LaneMask is_member(const Kept& kept, int i) {
  return static_cast<LaneMask>((i & 1 ? kept.one : ~kept.one) & (i & 2 ? kept.two : ~kept.two));
}

// Besides what is chosen, members that a window or sinks force.
template <int kN, int kM, class Weights>
static void weigh_forced(const TilePlan& plan, const ScoreTile& tile, const Allowed& allowed, int group,
                         Weights& weights) {
  Marks marks;
  each_group<kM>(tile, plan.stride, [&](const Lanes (&x)[kM], int place) {
    Kept kept[kN];
    choose(x, marks, kept);
    Words to[kM];
    for (int i = 0; i < kM; i++) {
      unsigned keep = allowed.forced[plan.key_at[place + i]] >> (group * kLanes);
      for (const Kept& one : kept) keep |= is_member(one, i);
      const LaneMask lanes = static_cast<LaneMask>(keep);
      to[i] = only(lanes, weights(select(lanes, x[i], broadcast_lanes(-INFINITY))));
    }
    for (int i = 0; i < kM; i += 2) store(pair_row(tile, place + i), pair(to[i], to[i + 1]));
  });
}

template <int kN, int kM, class Weights>
static void weigh_groups(const TilePlan& plan, const ScoreTile& tile, const Allowed& allowed, int group,
                         Weights& weights) {
  if (allowed.force) return weigh_forced<kN, kM>(plan, tile, allowed, group, weights);
  if (tile.picked != nullptr) return pick_groups<kN, kM>(tile, plan.stride, weights);
  spread_groups<kN, kM>(tile, plan.stride, weights);
}

template <class Weights>
static void weigh_in_order(const TilePlan& plan, const ScoreTile& tile, const Allowed& allowed, int group,
                           LaneState& state) {
  Weights weights(plan, state);
  if (plan.m == 1) {
    weigh_all(tile, weights);
  } else if (plan.m == 2) {
    weigh_groups<1, 2>(plan, tile, allowed, group, weights);
  } else if (plan.n == 1) {
    weigh_groups<1, 4>(plan, tile, allowed, group, weights);
  } else {
    weigh_groups<2, 4>(plan, tile, allowed, group, weights);
  }
  weights.finish(state);
}

// Any pattern, with what is forced and counted.
template <class Weights>
static void weigh_by_rank(const TilePlan& plan, const ScoreTile& tile, const Allowed& allowed, int group, bool careful,
                          LaneState& state) {
  const Lanes wanted = broadcast_lanes(static_cast<float>(plan.n) - 0.5f);
  const Words dropped = broadcast_words(careful ? kNotKept : 0u), single = broadcast_words(1);
  Weights weights(plan, state);
  for (int start = 0; start < tile.keys; start += plan.m * plan.stride) {
    for (int first = start; first < start + plan.stride; first++) {
      Lanes x[kMaxMembers], rank[kMaxMembers];
      for (int i = 0; i < plan.m; i++) x[i] = score(tile, first + i * plan.stride);
      rank_members(x, plan.m, rank);
      for (int i = 0; i < plan.m; i++) {
        const int key = first + i * plan.stride;
        const unsigned forced = allowed.force ? allowed.forced[key] >> (group * kLanes) : 0;
        const LaneMask some = greater(x[i], broadcast_lanes(-INFINITY));
        const LaneMask keep = static_cast<LaneMask>((greater(wanted, rank[i]) | forced) & some);
        const Lanes weight = weights.weight(x[i]), none = broadcast_lanes(0.0f);
        put_weight(tile, plan.place[key], select(keep, weights.count(select(keep, weight, none)), dropped));
        if (!plan.counts) continue;
        state.dropped = add(state.dropped, select(static_cast<LaneMask>(some & ~keep), weight, none));
        state.kept = add(state.kept, only(keep, single));
        state.allowed = add(state.allowed, only(some, single));
      }
    }
  }
  weights.finish(state);
}

// The choice by itself: marks where weights will be. `careful`: scores may have been infinite or NaN.
static void mark_chosen(const TilePlan& plan, const ScoreTile& tile, const Allowed& allowed, int group, bool careful) {
  LaneState unused;
  clear(unused);
  if (careful || !plan.in_order) {
    weigh_by_rank<Marks>(plan, tile, allowed, group, false, unused);
  } else {
    weigh_in_order<Marks>(plan, tile, allowed, group, unused);
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
