// The geometry of one call: how keys are laid out, cut into tiles and shared among tasks.
//
// Keys are packed so that the members of a group of M stand in different vectors, in the same lane:
//
//     position of slot s of group g:  vector (g / kWidth) · M + s,  lane g % kWidth
//     its key:                        (g / stride) · M · stride + s · stride + g % stride
//
// A choice among the members is then a few operations between vectors, and needs no shuffle.
#pragma once

#include <float.h>

#include "common/reach.h"
#include "common/row_sums.h"
#include "common/team.h"
#include "common/texts.h"
#include "dynattn_cpu.h"
#include "simd/simd.h"

namespace dynattn::DYNATTN_NAMESPACE {

// How scores are made and stored. kOneOfTwo and kTwoOfFour choose in registers and store survivors only; kPositions
// stores every score by position, and chooses in memory where a choice is asked for (other patterns, aux outputs).
enum class Layout { kPositions, kOneOfTwo, kTwoOfFour };

// Register tiles of the products: the rows of a band × the vectors of a panel. Of AVX2's 16 registers 12 accumulate, of
// AVX-512's 32, 24.
constexpr int kRows = kRegisters == 32 ? 12 : 6;  // with panels of 2 vectors
constexpr int kPanel = 2;
constexpr int kRowsWide = kRows / 2;  // with panels of 4 vectors, for 2:4
constexpr int kPanelWide = 4;
// Dense attention over chosen blocks: bands that divide blocks of 16, 64 and most other sizes evenly, since what blocks
// drop is skipped by whole bands and tiles.
constexpr int kRowsBlocks = kRegisters == 32 ? 8 : 4;  // with panels of 2 vectors
constexpr int kRowsFine = 2 * kRowsBlocks;             // with panels of 1, whose tiles are kTileFine

constexpr int kTile = 64;               // keys a tile; a multiple of 4 · kWidth
constexpr int kTileFine = 16;           // with blocks of fewer keys than kTile
constexpr int kMaxTile = 512 * kWidth;  // generic patterns round up to whole runs of M · stride keys, and to panels
constexpr int kMaxM = 32;
constexpr int kMaxHeadDim = DYNATTN_MAX_HEAD_DIM;             // of values too
constexpr int kMaxChunk = 64 / kWidth > 8 ? 8 : 64 / kWidth;  // vectors of a value row that are worked on at a time

// Queries of a query block. Their scores, accumulators and packed rows stay in the second-level cache.
constexpr int kQueryBlock = 192;
constexpr int kSmallestQueryBlock = 24;  // halved down to this where there would be fewer tasks than:
constexpr int64_t kEnoughTasks = 8;
constexpr int kQueryBlockGeneric = 48;  // tiles of generic patterns are up to eight times as long

constexpr float kLog2e = 1.44269504088896341f;

struct Plan {
  const NMForwardArgs* args;
  RowSums sums;  // not NULL: these are what is asked for, in place of the output
  Pages pages;
  Layout layout;
  int n, m, stride;             // n == m is taken as 1 of 1
  bool window;                  // there are entries kept besides the choice
  bool cut;                     // of what is kept, some is dropped for where it stands
  bool confined;                // likewise, and nothing is chosen, so that it may as well be forbidden
  bool counts;                  // kept mass, kept and allowed are asked for
  bool generic;                 // every tile goes by position, with the choice in memory
  bool rounds;                  // weights are rounded to bfloat16 before they multiply values
  bool dense;                   // every allowed entry is kept
  int panel, rows;              // vectors of a panel, rows of a band
  int tile;                     // keys of a tile
  int query_block;              // rows of a query block, a multiple of `rows`
  int64_t tiles, query_blocks;  // how many
  int64_t offset;               // position of query 0 on the key axis

  bool careful;  // forbidden scores must be told apart from low ones

  // The scores are (q · fold·k) · multiplier + bias, and a weight is 2^((score - max) · exponent).
  float fold, multiplier, exponent, floor, growth;

  int chunks, chunk;    // a value row is `chunks` pieces of `chunk` vectors, each padded with zeros
  bool value_in_place;  // the caller's values already lie so
  int chunk_tiles;      // tiles that one thread packs at a time
  int64_t pack_steps;

  alignas(64) int32_t key_of[kMaxTile];    // key of a position, within a tile
  alignas(64) float key_number[kMaxTile];  // the same as a float
  int value_of[kMaxTile];                  // the same, in floats of a value chunk
};

DYNATTN_INLINE int64_t value_width(const Plan& plan) { return int64_t{plan.chunks} * plan.chunk * kWidth; }

static void plan_scores(Plan& plan) {
  const NMForwardArgs& args = *plan.args;
  const float size = fabsf(args.scale);
  const bool biased = args.mask != nullptr && args.mask_dtype != DYNATTN_BOOL;
  // The choice is made on raw products where it can be; a negative scale turns the keys' sign, which is exact.
  plan.fold = args.scale < 0 ? -1.0f : 1.0f;
  plan.multiplier = biased ? size : 1.0f;
  plan.exponent = biased ? kLog2e : size * kLog2e;
  // The exponent may be so small that no float is far enough below the maximum to have weight 0, as forbidden scores
  // must. The careful variant takes such calls.
  plan.careful = plan.exponent < 0x1p-100f;
  plan.floor = larger(-127.0f / plan.exponent, -FLT_MAX);
  plan.growth = 8.0f / plan.exponent;  // a row rescales when its maximum has grown by more than 2^8
}

static void plan_values(Plan& plan) {
  const NMForwardArgs& args = *plan.args;
  const int vectors = static_cast<int>(ceil_div(args.value_dim, kWidth));
  plan.chunks = static_cast<int>(ceil_div(vectors, kMaxChunk));
  plan.chunk = static_cast<int>(ceil_div(vectors, plan.chunks));
  const int64_t alignment = kWidth * sizeof(float);
  plan.value_in_place = plan.pages.table == nullptr && args.dtype == DYNATTN_FLOAT32 && plan.chunks == 1 && args.value_dim % kWidth == 0 &&
                        args.value_strides[2] == args.value_dim && args.value_strides[0] % kWidth == 0 &&
                        args.value_strides[1] % kWidth == 0 && reinterpret_cast<uintptr_t>(args.value) % alignment == 0;
}

// Goes from group to group without a division for each, which would be a short call's longest part.
static void plan_positions(Plan& plan) {
  const int width = plan.chunk * kWidth;
  for (int vector = 0; vector < plan.tile / kWidth; vector++) {
    const int group = vector / plan.m * kWidth, slot = vector % plan.m;  // of lane 0
    int run = group / plan.stride, place = group % plan.stride;
    for (int position = vector * kWidth; position < (vector + 1) * kWidth; position++) {
      const int key = (run * plan.m + slot) * plan.stride + place;
      plan.key_of[position] = key;
      plan.key_number[position] = static_cast<float>(key);
      plan.value_of[position] = key * width;
      if (++place == plan.stride) place = 0, run++;
    }
  }
}

// The number of keys in a tile, at least `wanted`: whole runs of M · stride keys, whose groups fill whole vectors and
// panels.
static int tile_keys(const Plan& plan, int wanted) {
  const int step = plan.m % plan.panel ? kWidth * plan.panel : kWidth;
  int groups = step;
  while (groups % plan.stride != 0) groups += step;
  return static_cast<int>(round_up(wanted, int64_t{plan.m} * groups));
}

// Chooses the vectors of a panel, the rows of a band and the keys of a tile.
static void plan_bands(Plan& plan, bool skips) {
  const NMForwardArgs& args = *plan.args;
  const bool blocks = plan.dense && !skips && args.blocks != nullptr && args.q_len > 1;
  const bool fine = blocks && args.block_size < kTile;
  plan.panel = fine ? 1 : plan.layout == Layout::kTwoOfFour ? kPanelWide : kPanel;
  plan.rows = fine ? kRowsFine : blocks ? kRowsBlocks : plan.layout == Layout::kTwoOfFour ? kRowsWide : kRows;
  if (skips) plan.rows = DYNATTN_SKIP_QUERIES;  // a band is what decides together
  if (args.q_len == 1) plan.rows = 1;  // decoding: a band of one row, without padding to compute
  plan.tile = tile_keys(plan, fine ? kTileFine : kTile);
}

static void make_plan(Plan& plan, const NMForwardArgs& args, const Pages& pages = {nullptr, 0}, bool skips = false,
                      bool by_rule = false) {
  plan.args = &args;
  plan.sums = {};
  plan.pages = pages;
  const bool chooses = by_rule || args.n != args.m || args.threshold != nullptr;
  plan.cut = args.within > 0;
  plan.confined = plan.cut && !chooses;
  plan.dense = args.n == args.m;
  plan.n = plan.dense ? 1 : args.n;
  plan.m = plan.dense ? 1 : args.m;
  plan.stride = plan.dense ? 1 : args.stride;
  plan.window = chooses && (args.window > 0 || args.sinks > 0);
  plan.rounds = false;
  plan.counts = args.kept_mass != nullptr;
  // The choice in registers is for tiles of kTile keys in which a vector's groups are neighbours.
  const bool aligned = plan.stride == 1 || (plan.stride % kWidth == 0 && kTile % (plan.m * plan.stride) == 0);
  plan.layout = aligned && plan.n == 1 && plan.m == 2   ? Layout::kOneOfTwo
                : aligned && plan.n == 2 && plan.m == 4 ? Layout::kTwoOfFour
                                                        : Layout::kPositions;
  plan.generic = plan.counts || (plan.layout == Layout::kPositions && !plan.dense);
  plan_bands(plan, skips);
  plan.offset = args.kv_len - args.q_len;
  plan.tiles = ceil_div(args.kv_len, plan.tile);

  // Query blocks have about the same size, so that none of them is a small rest. Only shapes decide, so that the number
  // of threads changes no bit.
  int most = plan.tile <= kTile ? kQueryBlock : kQueryBlockGeneric;
  while (most > kSmallestQueryBlock && ceil_div(args.q_len, most) * args.batch * args.heads < kEnoughTasks) most /= 2;
  const int64_t bands = ceil_div(args.q_len, plan.rows);
  plan.query_blocks = ceil_div(bands * plan.rows, most);
  if (plan.query_blocks > 0) {
    plan.query_block = static_cast<int>(ceil_div(bands, plan.query_blocks)) * plan.rows;
    plan.query_blocks = ceil_div(args.q_len, plan.query_block);
  }
  plan_scores(plan);
  plan_values(plan);
  plan_positions(plan);
  plan.chunk_tiles = static_cast<int>(ceil_div(256, plan.tile));
  plan.pack_steps = ceil_div(plan.tiles, plan.chunk_tiles);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
