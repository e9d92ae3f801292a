// y = Σ_i x_i W[i, :] over the inputs that a token keeps, for a few tokens. A row of W is what one input gives to all
// outputs, so the row of an input that no token keeps is not read.
//
// A task is a strip of outputs. An output's sum takes one input after another, in blocks of kBlockPanels · kPanelInputs
// inputs whose sums are added up. So it is the same to the bit however outputs are cut into strips, whatever other tokens
// keep, and in both ways of going through a block:
// - one token adds eight rows at a time to the sums of the whole strip: eight long streams through memory;
// - several tokens take a panel of inputs and a tile of outputs, which lies in the first-level cache after the first
//   token has read it. A token's sums of a tile stay in registers.
#pragma once

#include "linear/kept_inputs.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int64_t kPanelInputs = 32;  // a bit each in a word
constexpr int64_t kBlockPanels = 8;
constexpr int64_t kStrip = 4096, kSharedStrip = 768;  // outputs at most, for one token and for several
constexpr int64_t kLeastStrip = 32;
constexpr int kInputsAtOnce = 8;
constexpr int kTileVectors = 12;  // and a register for the factor, of 16
constexpr int64_t kTileOutputs = kTileVectors * kWidth;

// The inputs that a token keeps, in order.
struct KeptInputs {
  int32_t* input;
  float* factor;   // x of each
  int32_t* first;  // [panel] which of them is the panel's first; and one behind
};

struct RowsJob {
  const LinearArgs* args;
  KeptInputs kept[DYNATTN_LINEAR_TOKENS];
  uint64_t* words;  // of a token, as find_kept() writes them
  uint32_t* asked;  // [panel] the inputs that some token keeps
  int64_t panels, strip, strips, scratch_bytes;
  int threads;
  char* scratch;
  int64_t next_strip, next_thread;
};

// A thread's memory for one strip.
struct RowsScratch {
  float* totals;  // [token][strip] of the blocks so far
  float* sums;    // [token][strip] of this block
  float* tile;    // [input][output] of a panel, as floats
};

static RowsScratch lay_rows_scratch(const RowsJob& job, Arena& arena) {
  RowsScratch s;
  s.totals = arena.take<float>(job.args->tokens * job.strip);
  s.sums = arena.take<float>(job.args->tokens * job.strip);
  s.tile = arena.take<float>(job.args->tokens > 1 ? kPanelInputs * kTileOutputs : 0);
  return s;
}

// The rows of a strip, or of a part of one.
template <class Weights>
struct StripRows {
  const typename Weights::Element* at;
  int64_t stride;
  const typename Weights::Element* row(int64_t input) const { return at + input * stride; }
};

static void list_kept_inputs(const RowsJob& job, int64_t token) {
  const LinearArgs& args = *job.args;
  const KeptInputs& kept = job.kept[token];
  find_kept(args, token, job.words);
  int32_t count = 0;
  for (int64_t panel = 0; panel < job.panels; panel++) {
    const int64_t first = panel * kPanelInputs;
    const uint32_t asked = static_cast<uint32_t>(job.words[first / kWordInputs] >> first % kWordInputs);
    kept.first[panel] = count;
    for (uint32_t left = asked; left != 0; left &= left - 1, count++) {
      const int64_t i = first + __builtin_ctz(left);
      kept.input[count] = static_cast<int32_t>(i);
      kept.factor[count] = input_of(args, token, i);
    }
    job.asked[panel] |= asked;
  }
  kept.first[job.panels] = count;
}

// sums += Σ_k factors[k] · row of inputs[k], one after the other.
template <class Weights, int kCount>
DYNATTN_INLINE void add_inputs(float* sums, int64_t width, const StripRows<Weights>& rows, const int32_t* inputs,
                               const float* factors) {
  const typename Weights::Element* row[kCount];
  Vec factor[kCount];
#pragma GCC unroll 8
  for (int k = 0; k < kCount; k++) row[k] = rows.row(inputs[k]), factor[k] = broadcast(factors[k]);
  int64_t j = 0;
  for (; j + 2 * kWidth <= width; j += 2 * kWidth) {
    Vec a = load(sums + j), b = load(sums + j + kWidth);
#pragma GCC unroll 8
    for (int k = 0; k < kCount; k++) {
      a = fmadd(factor[k], Weights::load(row[k] + j), a);
      b = fmadd(factor[k], Weights::load(row[k] + j + kWidth), b);
    }
    store(sums + j, a), store(sums + j + kWidth, b);
  }
  for (; j < width; j += kWidth) {
    const int64_t left = width - j;
    Vec a = load(sums + j);
#pragma GCC unroll 8
    for (int k = 0; k < kCount; k++) {
      a = fmadd(factor[k], left < kWidth ? load_some<Weights>(row[k] + j, left) : Weights::load(row[k] + j), a);
    }
    store(sums + j, a);
  }
}

// A row begins where no prefetcher expects it: its first lines are asked for while the rows before it are added.
template <class Weights>
DYNATTN_INLINE void prefetch_rows(const StripRows<Weights>& rows, int64_t width, const int32_t* inputs, int64_t count) {
  constexpr int64_t kLine = 64, kBytes = 16 * kLine;
  const int64_t bytes = smaller(kBytes, width * static_cast<int64_t>(sizeof(typename Weights::Element)));
  for (int64_t k = 0; k < count; k++) {
    const char* row = reinterpret_cast<const char*>(rows.row(inputs[k]));
    for (int64_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(row + byte);
  }
}

template <class Weights>
static void add_list(float* sums, int64_t width, const StripRows<Weights>& rows, const int32_t* inputs,
                     const float* factors, int64_t count) {
  int64_t k = 0;
  for (; k + kInputsAtOnce <= count; k += kInputsAtOnce) {
    const int64_t next = k + kInputsAtOnce;
    prefetch_rows(rows, width, inputs + next, smaller<int64_t>(kInputsAtOnce, count - next));
    add_inputs<Weights, kInputsAtOnce>(sums, width, rows, inputs + k, factors + k);
  }
  if (count - k >= 4) add_inputs<Weights, 4>(sums, width, rows, inputs + k, factors + k), k += 4;
  if (count - k >= 2) add_inputs<Weights, 2>(sums, width, rows, inputs + k, factors + k), k += 2;
  if (count - k >= 1) add_inputs<Weights, 1>(sums, width, rows, inputs + k, factors + k);
}

// The rows of a panel that some token asks for, `width` outputs of them, as floats and side by side: rows that lie a power
// of two apart would put each other out of the cache. The last vector is filled with 0.
template <class Weights>
static void copy_tile(uint32_t asked, const StripRows<Weights>& rows, int64_t width, int64_t first, float* tile) {
  for (; asked != 0; asked &= asked - 1) {
    const int at = __builtin_ctz(asked);
    const typename Weights::Element* row = rows.row(first + at);
    float* to = tile + at * kTileOutputs;
    int64_t j = 0;
    for (; j + kWidth <= width; j += kWidth) store(to + j, Weights::load(row + j));
    if (j < width) store(to + j, load_some<Weights>(row + j, width - j));
  }
}

// sums += Σ_k factors[k] · row of inputs[k], one after the other, for kVectors vectors from `j` on.
template <int kVectors>
DYNATTN_INLINE void add_tile(float* sums, const float* tile, int64_t first, int64_t j, const int32_t* inputs,
                             const float* factors, int64_t count) {
  Vec acc[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; v++) acc[v] = load(sums + j + v * kWidth);
  for (int64_t k = 0; k < count; k++) {
    const float* row = tile + (inputs[k] - first) * kTileOutputs + j;
    const Vec factor = broadcast(factors[k]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) acc[v] = fmadd(factor, load(row + v * kWidth), acc[v]);
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; v++) store(sums + j + v * kWidth, acc[v]);
}

static void add_tile(float* sums, const float* tile, int64_t first, int64_t width, const int32_t* inputs,
                     const float* factors, int64_t count) {
  if (width == kTileOutputs) return add_tile<kTileVectors>(sums, tile, first, 0, inputs, factors, count);
  int64_t j = 0;
  for (; j + 4 * kWidth <= width; j += 4 * kWidth) add_tile<4>(sums, tile, first, j, inputs, factors, count);
  for (; j < width; j += kWidth) add_tile<1>(sums, tile, first, j, inputs, factors, count);
}

// What several tokens keep of a panel.
template <class Weights>
static void add_panel(const RowsJob& job, const RowsScratch& s, int64_t width, const StripRows<Weights>& rows,
                      int64_t panel) {
  const int64_t first = panel * kPanelInputs;
  for (int64_t j = 0; j < width; j += kTileOutputs) {
    const int64_t left = smaller(kTileOutputs, width - j);
    copy_tile<Weights>(job.asked[panel], {rows.at + j, rows.stride}, left, first, s.tile);
    for (int64_t token = 0; token < job.args->tokens; token++) {
      const KeptInputs& kept = job.kept[token];
      const int32_t from = kept.first[panel], end = kept.first[panel + 1];
      add_tile(s.sums + token * job.strip + j, s.tile, first, left, kept.input + from, kept.factor + from, end - from);
    }
  }
}

template <class Weights>
static void run_strip(const RowsJob& job, const RowsScratch& s, int64_t strip) {
  const LinearArgs& args = *job.args;
  const int64_t first = strip * job.strip, width = smaller(job.strip, args.outputs - first);
  const int64_t all = args.tokens * job.strip;
  const StripRows<Weights> rows = {static_cast<const typename Weights::Element*>(args.weight) + first,
                                   args.weight_stride};
  for (int64_t j = 0; j < all; j++) s.totals[j] = 0.0f;
  for (int64_t block = 0; block < job.panels; block += kBlockPanels) {
    const int64_t end = smaller(block + kBlockPanels, job.panels);
    for (int64_t j = 0; j < all; j++) s.sums[j] = 0.0f;
    if (args.tokens == 1) {
      const KeptInputs& kept = job.kept[0];
      const int32_t from = kept.first[block];
      add_list(s.sums, width, rows, kept.input + from, kept.factor + from, kept.first[end] - from);
    } else {
      for (int64_t panel = block; panel < end; panel++) add_panel(job, s, width, rows, panel);
    }
    for (int64_t j = 0; j < all; j++) s.totals[j] += s.sums[j];
  }
  for (int64_t token = 0; token < args.tokens; token++) {
    write_outputs(args, token, first, width, s.totals + token * job.strip, s.sums + token * job.strip);
  }
}

template <class Weights>
static void work_rows(void* data) {
  RowsJob& job = *static_cast<RowsJob*>(data);
  const int64_t thread = increment(job.next_thread);
  if (thread >= job.threads) return;  // there is memory for no more
  Arena arena = {reinterpret_cast<uintptr_t>(job.scratch + thread * job.scratch_bytes), 0};
  const RowsScratch scratch = lay_rows_scratch(job, arena);
  for (int64_t strip = increment(job.next_strip); strip < job.strips; strip = increment(job.next_strip)) {
    run_strip<Weights>(job, scratch, strip);
  }
}

// Strips of one width, as many for each thread as for any other, no wider than `job.strip`.
static void cut_strips(RowsJob& job) {
  const LinearArgs& args = *job.args;
  int64_t asked = 0;
  for (int64_t panel = 0; panel < job.panels; panel++) asked += __builtin_popcount(job.asked[panel]);
  job.threads = reading_threads(args, asked * args.outputs, ceil_div(args.outputs, kLeastStrip));
  const int64_t parts = job.threads * ceil_div(args.outputs, job.threads * job.strip);
  job.strip = round_up(ceil_div(args.outputs, parts), kLeastStrip);
  job.strips = ceil_div(args.outputs, job.strip);
}

// The lists, and behind them the memory of as many threads as there may be, for strips as wide as they may be.
static void lay_rows_job(RowsJob& job, Arena& arena) {
  const LinearArgs& args = *job.args;
  job.panels = ceil_div(args.inputs, kPanelInputs);
  for (int64_t token = 0; token < args.tokens; token++) {
    job.kept[token].input = arena.take<int32_t>(args.inputs);
    job.kept[token].factor = arena.take<float>(args.inputs);
    job.kept[token].first = arena.take<int32_t>(job.panels + 1);
  }
  job.words = arena.take<uint64_t>(kept_words(args.inputs));
  job.asked = arena.take<uint32_t>(job.panels);
  job.strip = smaller(args.tokens == 1 ? kStrip : kSharedStrip, round_up(args.outputs, kLeastStrip));
  Arena scratch = {0, 0};
  lay_rows_scratch(job, scratch);
  job.scratch_bytes = scratch.used;
  job.scratch = arena.take<char>(most_threads(args.threads) * job.scratch_bytes);
}

template <class Weights>
static int32_t run_rows(const LinearArgs& args) {
  RowsJob job = {};
  job.args = &args;
  Arena arena = {0, 0};
  lay_rows_job(job, arena);
  void* const memory = take_workspace(static_cast<size_t>(arena.used));
  if (memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  arena = {reinterpret_cast<uintptr_t>(memory), 0};
  lay_rows_job(job, arena);
  memset(job.asked, 0, static_cast<size_t>(job.panels) * sizeof job.asked[0]);
  for (int64_t token = 0; token < args.tokens; token++) list_kept_inputs(job, token);
  cut_strips(job);
  run_team(args.parallel, job.threads, work_rows<Weights>, &job);
  return_workspace(memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
