// Dense attention that skips what its own scores show to be small, on tiles: of a run of keys and a band of queries,
// weights and values are left out where the largest score of every query lies a margin below the largest that it has met
// so far. Sixteen queries are two bands, and a tile of keys is two runs, which values are multiplied by together.
#pragma once

#include "tiles/softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int kRunsOfStep = kTileDepth / DYNATTN_SKIP_KEYS;
constexpr int kMostRuns = kMaxKeyBlock / DYNATTN_SKIP_KEYS;

// The lanes that keep each run of a block of keys.
struct KeptRuns {
  LaneMask lanes[kMostRuns];

  // Whether some lane keeps one of the runs of a step of kTileDepth keys.
  bool any(int64_t step) const {
    unsigned some = 0;
    for (int64_t run = 0; run < kRunsOfStep; run++) some |= lanes[step * kRunsOfStep + run];
    return some != 0;
  }
};

// All lanes of the bands of which some lane is set.
DYNATTN_INLINE LaneMask whole_bands(LaneMask lanes) {
  constexpr unsigned kBand = (1u << DYNATTN_SKIP_QUERIES) - 1;
  unsigned whole = 0;
  for (unsigned band = kBand; band <= kAllLanes; band <<= DYNATTN_SKIP_QUERIES) whole |= (lanes & band) != 0 ? band : 0;
  return static_cast<LaneMask>(whole);
}

// Raises the queries' largest scores. `present`: lanes that hold a query, which alone can ask for anything.
static void keep_runs(const TilePlan& plan, const ScoreTile& tile, LaneMask present, LaneState& state, KeptRuns& kept) {
  const Lanes forbidden = broadcast_lanes(-INFINITY), margin = broadcast_lanes(plan.margin);
  for (int run = 0; run < plan.padded / DYNATTN_SKIP_KEYS; run++) {
    const int64_t first = int64_t{run} * DYNATTN_SKIP_KEYS;
    Lanes largest = score(tile, first);
    for (int key = 1; key < DYNATTN_SKIP_KEYS; key++) largest = max(largest, score(tile, first + key));
    // the difference is exact where scores are large and near each other; most - margin would not be
    const LaneMask below = greater(sub(state.most, largest), margin);
    kept.lanes[run] = whole_bands(static_cast<LaneMask>(greater(largest, forbidden) & ~below & present));
    state.most = max(state.most, largest);
  }
}

// Scores of lanes that do not keep a run become forbidden.
static void forbid_others(const ScoreTile& tile, const KeptRuns& kept) {
  const Lanes forbidden = broadcast_lanes(-INFINITY);
  for (int key = 0; key < tile.keys; key++) {
    const LaneMask lanes = kept.lanes[key / DYNATTN_SKIP_KEYS];
    store(score_row(tile, key), select(lanes, score(tile, key), forbidden));
  }
}

// Weights of the runs that are kept, and zeros for the others of the steps that are multiplied.
template <class Weights>
static void weigh_runs(const TilePlan& plan, const ScoreTile& tile, const KeptRuns& kept, LaneState& state) {
  const Lanes forbidden = broadcast_lanes(-INFINITY);
  Weights weights(plan, state);
  for (int key = 0; key < tile.keys; key += 2) {
    const LaneMask lanes = kept.lanes[key / DYNATTN_SKIP_KEYS];
    Words words = broadcast_words(0);
    if (lanes != 0) {
      const Words low = weights(select(lanes, score(tile, key), forbidden));
      words = pair(low, weights(select(lanes, score(tile, key + 1), forbidden)));
    }
    store(pair_row(tile, key), words);
  }
  weights.finish(state);
}

// Writes down which runs of a block of keys 16 queries keep.
static void note_runs(const QueryTile& at, int group, int64_t first_key, const KeptRuns& kept) {
  if (at.plan.kept_runs == nullptr) return;
  const NMForwardArgs& args = *at.plan.args;
  const int64_t bands = ceil_div(args.q_len, DYNATTN_SKIP_QUERIES), runs = ceil_div(args.kv_len, DYNATTN_SKIP_KEYS);
  const int64_t first_band = (at.first + group * kLanes) / DYNATTN_SKIP_QUERIES, first = first_key / DYNATTN_SKIP_KEYS;
  for (int64_t band = 0; band < kLanes / DYNATTN_SKIP_QUERIES && first_band + band < bands; band++) {
    uint8_t* const to = at.plan.kept_runs + ((at.batch * args.heads + at.head) * bands + first_band + band) * runs;
    for (int64_t run = 0; run < at.plan.key_block / DYNATTN_SKIP_KEYS && first + run < runs; run++) {
      to[first + run] = kept.lanes[run] >> (band * DYNATTN_SKIP_QUERIES) & 1;
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
