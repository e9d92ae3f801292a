// y = Σ_i x_i W[i, :] over the inputs that a token keeps, for many tokens, in float32.
//
// A task is a run of tokens and a strip of outputs. Of each 64 inputs it lists what each token keeps, once: values and
// places. Then it takes 64 outputs at a time, and of them 64 inputs: that tile of weights is copied to where it stays in the
// first-level cache, rows side by side, and each token adds its list's rows to its sums, which stay in registers meanwhile.
// So a weight is loaded once for each token that keeps its input, and not at all for the others.
//
// An output's sum takes the inputs of a tile one after another, and tile after tile. So it is the same to the bit however
// tokens are cut into runs and outputs into strips, and whatever other tokens keep.
#pragma once

#include "linear/kept_inputs.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int64_t kTileInputs = kWordInputs, kTileOut = 64;
constexpr int64_t kRunTokens = 192;      // at most: what they keep stays in the caches
constexpr int64_t kLeastRunTokens = 32;  // where there are as many: a tile that serves fewer is not worth its copy
constexpr int kSumVectors = kTileOut / kWidth < 8 ? static_cast<int>(kTileOut) / kWidth : 8;  // at a time
constexpr int kSumsAtOnce = kSumVectors < 8 ? 2 : 1;  // sums of one output, so that enough are under way

// What a token keeps of a tile's inputs.
struct KeptList {
  float value[kTileInputs];
  uint8_t place[kTileInputs];
};

struct ManyJob {
  const LinearArgs* args;
  int64_t tiles, run, runs, strip, strips, scratch_bytes;
  int threads;
  char* scratch;
  int64_t next_task, next_thread;
};

// A thread's memory for a task.
struct ManyScratch {
  uint64_t* words;
  KeptList* kept;  // [tile][token]
  uint8_t* count;  // [tile][token]
  float* tile;     // [input][output]
  float* sums;     // [token][output]
};

static ManyScratch lay_many_scratch(const ManyJob& job, Arena& arena) {
  ManyScratch s;
  s.words = arena.take<uint64_t>(kept_words(job.args->inputs));
  s.kept = arena.take<KeptList>(job.tiles * job.run);
  s.count = arena.take<uint8_t>(job.tiles * job.run);
  s.tile = arena.take<float>(kTileInputs * kTileOut);
  s.sums = arena.take<float>(job.run * kTileOut);
  return s;
}

// For each word of eight bits the places of those that are set, a byte each, from the lowest byte on.
struct PlaceTable {
  uint64_t of[256];
};

constexpr PlaceTable make_places() {
  PlaceTable table = {};
  for (int word = 0; word < 256; word++) {
    int count = 0;
    for (int place = 0; place < 8; place++) {
      if (word >> place & 1) table.of[word] |= static_cast<uint64_t>(place) << 8 * count++;
    }
  }
  return table;
}

constexpr PlaceTable kPlaces = make_places();

// `x`: the inputs of the tile. A vector of values, and eight places, are written at a time; the next ones overwrite what
// is too many.
static uint8_t list_kept(uint64_t word, const float* x, KeptList& kept) {
  constexpr uint64_t kAll = (uint64_t{1} << kWidth) - 1;
  int values = 0, places = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kTileInputs; i += kWidth) {
    const uint32_t some = static_cast<uint32_t>(word >> i & kAll);
    store_any(kept.value + values, compress(some, load_any(x + i)));
    values += __builtin_popcount(some);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileInputs; i += 8) {
    const uint64_t some = word >> i & 0xff;
    const uint64_t at = kPlaces.of[some] + uint64_t{0x0101010101010101u} * static_cast<uint64_t>(i);
    memcpy(kept.place + places, &at, sizeof at);
    places += __builtin_popcount(static_cast<unsigned>(some));
  }
  return static_cast<uint8_t>(places);
}

static void list_run(const ManyJob& job, const ManyScratch& s, int64_t first, int64_t count) {
  const LinearArgs& args = *job.args;
  for (int64_t token = 0; token < count; token++) {
    find_kept(args, first + token, s.words);
    for (int64_t tile = 0; tile < job.tiles; tile++) {
      const int64_t at = tile * job.run + token;
      const float* x = inputs_from(args, first + token, tile * kTileInputs, kTileInputs, s.tile);
      s.count[at] = list_kept(s.words[tile], x, s.kept[at]);
    }
  }
}

// A tile of weights, side by side: rows that lie a power of two apart would put each other out of the cache. Outputs that
// are not there are 0.
static void copy_many_tile(const float* weight, int64_t stride, int64_t inputs, int64_t outputs, float* tile) {
  for (int64_t i = 0; i < inputs; i++) {
    const float* row = weight + i * stride;
    float* to = tile + i * kTileOut;
    int64_t j = 0;
    for (; j + kWidth <= outputs; j += kWidth) store(to + j, load_any(row + j));
    if (j < outputs) store(to + j, load_some<Float32Weights>(row + j, outputs - j)), j += kWidth;
    for (; j < kTileOut; j += kWidth) store(to + j, zero());
  }
}

template <int kLane>
DYNATTN_INLINE void add_row(Vec acc[kSumVectors], Vec four, const float* row) {
  const Vec value = broadcast_lane<kLane>(four);
#pragma GCC unroll 8
  for (int v = 0; v < kSumVectors; v++) acc[v] = fmadd(value, load(row + v * kWidth), acc[v]);
}

// sums += Σ_k value[k] · row place[k] of the tile, for kSumVectors vectors.
DYNATTN_INLINE void add_list(float* sums, const KeptList& kept, int count, const float* tile) {
  constexpr int kOther = kSumsAtOnce - 1;
  Vec acc[kSumsAtOnce][kSumVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kSumsAtOnce * kSumVectors; v++) acc[v / kSumVectors][v % kSumVectors] = zero();
  int k = 0;
  for (; k + 4 <= count; k += 4) {
    const Vec four = load_four(kept.value + k);
    uint32_t places;
    memcpy(&places, kept.place + k, sizeof places);
    add_row<0>(acc[0], four, tile + (places & 0xff) * kTileOut);
    add_row<1>(acc[kOther], four, tile + (places >> 8 & 0xff) * kTileOut);
    add_row<2>(acc[0], four, tile + (places >> 16 & 0xff) * kTileOut);
    add_row<3>(acc[kOther], four, tile + (places >> 24) * kTileOut);
  }
  for (; k < count; k++) {
    const Vec value = broadcast(kept.value[k]);
    const float* row = tile + kept.place[k] * kTileOut;
#pragma GCC unroll 8
    for (int v = 0; v < kSumVectors; v++) acc[0][v] = fmadd(value, load(row + v * kWidth), acc[0][v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kSumVectors; v++) {
    const Vec sum = kOther == 0 ? acc[0][v] : add(acc[0][v], acc[kOther][v]);
    store(sums + v * kWidth, add(load(sums + v * kWidth), sum));
  }
}

// The outputs of a run of tokens from `output` on, kTileOut of them at most.
static void run_outputs_of(const ManyJob& job, const ManyScratch& s, int64_t first, int64_t count, int64_t output) {
  const LinearArgs& args = *job.args;
  const int64_t outputs = smaller(kTileOut, args.outputs - output);
  const float* const weight = static_cast<const float*>(args.weight) + output;
  for (int64_t i = 0; i < count * kTileOut; i++) s.sums[i] = 0.0f;
  for (int64_t tile = 0; tile < job.tiles; tile++) {
    const int64_t input = tile * kTileInputs;
    copy_many_tile(weight + input * args.weight_stride, args.weight_stride, smaller(kTileInputs, args.inputs - input),
                   outputs, s.tile);
    for (int64_t token = 0; token < count; token++) {
      const int64_t at = tile * job.run + token;
      for (int64_t part = 0; part < kTileOut; part += kSumVectors * kWidth) {
        add_list(s.sums + token * kTileOut + part, s.kept[at], s.count[at], s.tile + part);
      }
    }
  }
  for (int64_t token = 0; token < count; token++) {
    write_outputs(args, first + token, output, outputs, s.sums + token * kTileOut, s.tile);
  }
}

static void work_many(void* data) {
  ManyJob& job = *static_cast<ManyJob*>(data);
  const int64_t thread = increment(job.next_thread);
  if (thread >= job.threads) return;  // there is memory for no more
  Arena arena = {reinterpret_cast<uintptr_t>(job.scratch + thread * job.scratch_bytes), 0};
  const ManyScratch scratch = lay_many_scratch(job, arena);
  for (int64_t task = increment(job.next_task); task < job.runs * job.strips; task = increment(job.next_task)) {
    const int64_t first = task / job.strips * job.run, count = smaller(job.run, job.args->tokens - first);
    const int64_t output = task % job.strips * job.strip, end = smaller(output + job.strip, job.args->outputs);
    list_run(job, scratch, first, count);
    for (int64_t at = output; at < end; at += kTileOut) run_outputs_of(job, scratch, first, count, at);
  }
}

// Runs of one length, as many for each thread as for any other. Where there are too few tokens for that, threads share a
// run, each with a strip of outputs, and each lists what is kept.
static void cut_tasks(ManyJob& job) {
  const LinearArgs& args = *job.args;
  const int64_t most_runs = larger<int64_t>(args.tokens / kLeastRunTokens, 1), chunks = ceil_div(args.outputs, kTileOut);
  const double products = static_cast<double>(args.tokens * args.inputs) * static_cast<double>(args.outputs);
  job.threads = useful_threads(args.parallel, products, args.threads, most_runs * chunks);
  const int64_t at_once = smaller<int64_t>(job.threads, most_runs);
  job.run = ceil_div(args.tokens, at_once * ceil_div(args.tokens, at_once * kRunTokens));
  job.runs = ceil_div(args.tokens, job.run);
  job.strip = ceil_div(chunks, smaller<int64_t>(job.threads / at_once, chunks)) * kTileOut;
  job.strips = ceil_div(args.outputs, job.strip);
}

static int32_t run_many(const LinearArgs& args) {
  ManyJob job = {};
  job.args = &args;
  job.tiles = ceil_div(args.inputs, kTileInputs);
  cut_tasks(job);
  Arena scratch = {0, 0};
  lay_many_scratch(job, scratch);
  job.scratch_bytes = scratch.used;
  job.scratch = static_cast<char*>(take_workspace(static_cast<size_t>(job.threads * job.scratch_bytes)));
  if (job.scratch == nullptr) return DYNATTN_OUT_OF_MEMORY;
  run_team(args.parallel, job.threads, work_many, &job);
  return_workspace(job.scratch);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
