// Few queries against many keys, as in decoding with a KV cache: keys and values are read in place, and only once.
//
// Packing pays when many rows use a packed key. For a few, a score is a product along head_dim with the key's own row,
// and a value row is touched only where its key is kept. The scores of a tile lie by position as plan.h has it, so that
// masks, choice, weights and counts are those of packed query blocks, in their careful variant: NaN and infinity need
// no second path here.
//
// A task is a range of keys, for one key head or for several, of one of the calls that threads share, and all query rows
// that share those heads. The task that completes a head merges its ranges, in order; shapes alone decide how long they
// are, so that threads change no bit.
//
// Where the rows of all heads for one key lie side by side, as in pages or in (tokens, heads, dim), a task takes heads
// together, tile by tile. By itself a head touches a few lines in every page of memory, and each page once for every
// head: the processor then looks up where pages lie for as long as it computes. Together all of a page is read at once.
#pragma once

#include "common/arena.h"
#include "common/team.h"
#include "nm/forward.h"
#include "nm/unpacked.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Queries up to which nothing is packed, and rows that may share a key head: all by measurement. More queries fill
// the register tiles of packed query blocks. Wide values cannot stay where they lie there, so that packing them pays
// for more queries only.
constexpr int64_t kFewQueries = 6;
constexpr int64_t kFewQueriesWide = 12;
constexpr int64_t kWideValue = 64;  // a value_dim above it is wide
constexpr int64_t kFewRows = 64;

constexpr int64_t kRangeKeys = 512;   // keys a range, at least
constexpr int64_t kRangeTasks = 256;  // ranges are not multiplied beyond about so many tasks
constexpr int64_t kTasksEach = 4;     // heads are taken together as long as each thread finds so many tasks

// A thread's memory.
struct FewScratch {
  float* queries;         // [head of the task][row][key_width], padded with zeros
  float* scores;          // [row][tile], then weights; negative where not kept
  float* bias;            // [row][tile]
  const float** bias_of;  // [row]: its bias, or NULL
  float* block_bias;      // [tile], by position: what a row's blocks forbid
  float* values;          // [tile][value width]: rows that cannot be read in place
  RowStates rows;         // [head of the task][row], unless ranges have states of their own
};

// A call of few queries.
struct Few {
  const Plan* plan;
  int64_t* finished;                  // [heads of a task] ranges done
  char* states;                       // [head][range], where a head has several
  int64_t states_bytes;
  int64_t first_task;                 // among those of all calls
  int64_t heads, heads_per_kv, rows;  // key heads, query heads of each, query rows of each
  int64_t together;                   // key heads of a task, of one sample
  int64_t ranges, range_tiles;
  int64_t key_width;                    // head_dim rounded up to whole vectors
  bool keys_in_place, values_in_place;  // float32 rows of whole vectors
  bool values_soon;                     // nearly all value rows of a tile will be read
};

// Where a tile's rows lie for the first head of a task.
struct FewTile {
  int64_t tile;
  RowPlaces keys, values;
};

// Calls of few queries that threads share.
struct FewJob {
  Few* calls;
  char* memory;
  int64_t count, tasks;
  int64_t scratch_offset, scratch_bytes;  // [thread]
  int threads;
  int64_t next_task, next_thread;
};

static RowStates rows_from(RowStates rows, int64_t row) {
  rows.reference += row;
  rows.ceiling += row;
  rows.sum += row * kWidth;
  rows.dropped += row * kWidth;
  rows.out += row * rows.out_stride;
  rows.kept += row;
  rows.allowed += row;
  rows.poisoned += row;
  return rows;
}

// One query head of a task, as a query block.
struct FewHead {
  PackedHead packed = {};
  Scratch scratch = {};
  QueryBlock block;

  FewHead(const Few& few, const FewScratch& own, const RowStates& rows, int64_t head, int64_t member)
      : block{*few.plan, packed, scratch, 0, 0, 0, few.plan->args->q_len, true, true} {
    const NMForwardArgs& args = *few.plan->args;
    scratch.rows = rows_from(rows, member * args.q_len);
    scratch.block_bias = own.block_bias;
    block.batch = head / args.kv_heads;
    block.index = head % args.kv_heads * few.heads_per_kv + member;
  }
};

static FewScratch lay_few_scratch(const Few& few, Arena& arena) {
  const Plan& plan = *few.plan;
  FewScratch s;
  s.queries = arena.take<float>(few.together * few.rows * few.key_width);
  s.scores = arena.take<float>(few.rows * plan.tile);
  s.bias = arena.take<float>(few.rows * plan.tile);
  s.bias_of = arena.take<const float*>(few.rows);
  s.block_bias = arena.take<float>(plan.args->blocks != nullptr ? plan.tile : 0);
  s.values = arena.take<float>(few.values_in_place ? 0 : plan.tile * value_width(plan));
  s.rows = lay_rows(plan, few.ranges > 1 ? 0 : few.together * few.rows, arena);
  return s;
}

// The rows of a head, in one range of keys.
static RowStates head_rows(const Few& few, const FewScratch& scratch, int64_t head, int64_t range) {
  if (few.ranges == 1) return rows_from(scratch.rows, head % few.together * few.rows);
  const int64_t at = (head * few.ranges + range) * few.states_bytes;
  Arena arena = {reinterpret_cast<uintptr_t>(few.states + at), 0};
  return lay_rows(*few.plan, few.rows, arena);
}

// The queries of a head. A negative scale turns their sign, as it turns the keys' where they are packed.
static void copy_queries(const Few& few, int64_t head, float* to) {
  const NMForwardArgs& args = *few.plan->args;
  const int64_t* stride = args.query_strides;
  for (int64_t r = 0; r < few.rows; r++) {
    const int64_t query_head = head % args.kv_heads * few.heads_per_kv + r / args.q_len;
    const int64_t at = head / args.kv_heads * stride[0] + query_head * stride[1] + r % args.q_len * stride[2];
    copy_row(to + r * few.key_width, element(args.query, at, args.dtype), args.dtype, args.head_dim, few.key_width);
    scale_row(to + r * few.key_width, few.key_width, few.plan->fold);
  }
}

// Products of all rows of a task's head with one tile of keys, by position. Keys that follow are asked for: of this head,
// then of the next one, and behind the last head those of the next tile.
static void score_in_place(const Few& few, const FewScratch& scratch, const FewTile& at, int64_t head) {
  const Plan& plan = *few.plan;
  const NMForwardArgs& args = *plan.args;
  alignas(64) float room[kWidth][kMaxHeadDim];
  const int64_t size = element_size(args.dtype), ahead = int64_t{plan.m} * kWidth;
  const int64_t key_head = head * args.key_strides[1] * size, value_head = head * args.value_strides[1] * size;
  const bool last = head + 1 == few.together;
  const int64_t next_head = last ? 0 : key_head + args.key_strides[1] * size, next_tile = last ? plan.tile : 0;
  const float* const own_queries = scratch.queries + head * few.rows * few.key_width;
  for (int position = 0; position < plan.tile; position += kWidth) {
    const float* keys[kWidth];
    for (int lane = 0; lane < kWidth; lane++) {
      const int64_t key = plan.key_of[position + lane], next = key + ahead;
      keys[lane] = kZeros;
      if (at.tile * plan.tile + key >= args.kv_len) continue;
      const char* row = at.keys.row(key) + key_head;
      prefetch_row(next < plan.tile ? at.keys.row(next) + key_head : at.keys.row(next - plan.tile + next_tile) + next_head,
                   args.head_dim * size);
      if (few.values_soon) prefetch_row(at.values.row(key) + value_head, args.value_dim * size);
      keys[lane] = few.keys_in_place ? reinterpret_cast<const float*>(row) : room[lane];
      if (!few.keys_in_place) copy_row(room[lane], row, args.dtype, args.head_dim, few.key_width);
    }
    for (int64_t r = 0; r < few.rows; r += kFewAtOnce) {
      const float* queries = own_queries + r * few.key_width;
      float* scores = scratch.scores + r * plan.tile + position;
      switch (smaller<int64_t>(kFewAtOnce, few.rows - r)) {
        case 1:
          dot_rows<1>(queries, few.key_width, keys, scores, plan.tile);
          break;
        case 2:
          dot_rows<2>(queries, few.key_width, keys, scores, plan.tile);
          break;
        case 3:
          dot_rows<3>(queries, few.key_width, keys, scores, plan.tile);
          break;
        default:
          dot_rows<kFewAtOnce>(queries, few.key_width, keys, scores, plan.tile);
      }
    }
  }
}

// The bias of every row over a tile; neighbouring rows that see the same share one. Returns false where nothing is
// allowed.
static bool make_few_biases(const Few& few, const FewScratch& scratch, const RowStates& rows, int64_t head,
                            int64_t first_key) {
  const Plan& plan = *few.plan;
  const int64_t q_len = plan.args->q_len;
  const int64_t keys = smaller<int64_t>(plan.tile, plan.args->kv_len - first_key);
  const char* last_mask = nullptr;
  const uint8_t* last_blocks = nullptr;
  const uint8_t* laid = nullptr;
  int64_t last_allowed = -1;
  bool any = false;
  for (int64_t r = 0; r < few.rows; r++) {
    const FewHead at(few, scratch, rows, head, r / q_len);
    const int64_t query = r % q_len, allowed = allowed_keys(plan, query, first_key);
    const char* mask = mask_entries(at.block, query, first_key);
    const BlockColumns columns = block_columns(*plan.args, at.block.batch, at.block.index, first_key, keys);
    const uint8_t* blocks = columns.kept == nullptr ? nullptr : block_row(columns, query);
    if (r > 0 && mask == last_mask && allowed == last_allowed && blocks == last_blocks) {
      scratch.bias_of[r] = scratch.bias_of[r - 1];
    } else {
      float* row = scratch.bias + r * plan.tile;
      const bool dropped = kept_blocks(columns, query, query) != KeptBlocks::kAll;
      const bool whole = mask == nullptr && allowed == plan.tile && !dropped;
      const BiasSummary all = whole
                                  ? BiasSummary{true, true, false}
                                  : make_row_bias(at.block, query, first_key, dropped ? &columns : nullptr, laid, row);
      scratch.bias_of[r] = as_band_bias(all, plan, row, 0).rows;
      any |= all.any;
    }
    last_mask = mask, last_allowed = allowed, last_blocks = blocks;
  }
  return any;
}

DYNATTN_INLINE void add_bias(const Plan& plan, float* scores, const float* bias) {
  const Vec multiplier = broadcast(plan.multiplier);
  for (int i = 0; i < plan.tile; i += kWidth) store(scores + i, fmadd(load(scores + i), multiplier, load(bias + i)));
}

// Converts value rows that cannot be read in place, once for each tile, when the first query row keeps them.
static void convert_kept(const Few& few, const PlacedRows& values, const KeptKeys& kept, bool* converted, float* to) {
  const NMForwardArgs& args = *few.plan->args;
  const int64_t width = value_width(*few.plan);
  for (int i = 0; i < kept.count; i++) {
    const int64_t key = kept.key[i];
    if (converted[key]) continue;
    converted[key] = true;
    const char* const next = values.bytes(kept.key[smaller(i + kValuesAhead, kept.count - 1)]);
    if (!few.values_soon) prefetch_row(next, args.value_dim * element_size(args.dtype));
    copy_row(to + key * width, values.bytes(key), args.dtype, args.value_dim, width);
  }
}

// Choice, weights and values of every row of a task's head over one tile whose scores are made.
static void weigh_few(const Few& few, const FewScratch& scratch, const FewTile& at, const RowStates& rows, int64_t head) {
  const Plan& plan = *few.plan;
  const NMForwardArgs& args = *plan.args;
  const int64_t first_key = at.tile * plan.tile;
  const PlacedRows values = {at.values, head % few.together * args.value_strides[1] * element_size(args.dtype)};
  bool converted[kMaxTile];
  if (!few.values_in_place) memset(converted, 0, static_cast<size_t>(plan.tile));
  KeptKeys kept;
  for (int64_t member = 0; member < few.heads_per_kv; member++) {
    const FewHead query_head(few, scratch, rows, head, member);
    for (int64_t i = 0; i < args.q_len; i++) {
      const int64_t r = member * args.q_len + i;
      float* scores = scratch.scores + r * plan.tile;
      float* out = rows.out + r * rows.out_stride;
      const float* bias = scratch.bias_of[r];
      if (bias != nullptr) add_bias(plan, scores, bias);
      weigh_by_position(query_head.block, i, scores, bias, first_key);
      list_kept(plan, scores, kept);
      if (!few.values_in_place) {
        convert_kept(few, values, kept, converted, scratch.values);
        add_kept(plan, out, EvenRows{scratch.values, value_width(plan)}, kept);
      } else if (plan.pages.table != nullptr) {
        add_kept(plan, out, values, kept);
      } else {
        add_kept(plan, out, EvenRows{values.row(0), args.value_strides[2]}, kept);
      }
    }
  }
}

static void run_range(const Few& few, const FewScratch& scratch, int64_t first_head, int64_t range) {
  const Plan& plan = *few.plan;
  const NMForwardArgs& args = *plan.args;
  for (int64_t i = 0; i < few.together; i++) {
    FewHead all(few, scratch, head_rows(few, scratch, first_head + i, range), first_head + i, 0);
    all.block.count = few.rows;
    clear_rows(all.block);
    copy_queries(few, first_head + i, scratch.queries + i * few.rows * few.key_width);
  }
  const char* const keys = kv_head(args, args.key, args.key_strides, first_head);
  const char* const values = kv_head(args, args.value, args.value_strides, first_head);
  const int64_t last = smaller((range + 1) * few.range_tiles, plan.tiles);
  FewTile at;
  for (at.tile = range * few.range_tiles; at.tile < last; at.tile++) {
    const int64_t first_key = at.tile * plan.tile;
    if (allowed_keys(plan, args.q_len - 1, first_key) == 0) break;
    find_rows(plan, keys, args.key_strides, first_key, at.keys);
    find_rows(plan, values, args.value_strides, first_key, at.values);
    for (int64_t i = 0; i < few.together; i++) {
      const RowStates rows = head_rows(few, scratch, first_head + i, range);
      if (!make_few_biases(few, scratch, rows, first_head + i, first_key)) continue;
      score_in_place(few, scratch, at, i);
      weigh_few(few, scratch, at, rows, first_head + i);
    }
  }
}

static void add_scaled(float* to, const float* from, int64_t count, float factor) {
  const Vec f = broadcast(factor);
  for (int64_t i = 0; i < count; i += kWidth) store(to + i, fmadd(load(from + i), f, load(to + i)));
}

// Adds the state of a row from another range of keys, after both are brought to a common reference.
static void merge_row(const Plan& plan, const RowStates& to, const RowStates& from, int64_t row) {
  to.kept[row] += from.kept[row];
  to.allowed[row] += from.allowed[row];
  to.poisoned[row] |= from.poisoned[row];
  if (from.ceiling[row] == -INFINITY) return;
  if (to.ceiling[row] == -INFINITY || from.reference[row] > to.reference[row]) {
    raise_reference(plan, to, row, from.reference[row]);
  }
  const float factor = exp2f((from.reference[row] - to.reference[row]) * plan.exponent);
  add_scaled(to.sum + row * kWidth, from.sum + row * kWidth, kWidth, factor);
  add_scaled(to.dropped + row * kWidth, from.dropped + row * kWidth, kWidth, factor);
  add_scaled(to.out + row * to.out_stride, from.out + row * from.out_stride, to.out_stride, factor);
}

static void run_few_task(const Few& few, const FewScratch& scratch, int64_t task) {
  const int64_t group = task / few.ranges, first_head = group * few.together;
  run_range(few, scratch, first_head, task % few.ranges);
  if (increment(few.finished[group]) + 1 < few.ranges) return;

  for (int64_t head = first_head; head < first_head + few.together; head++) {
    const RowStates whole = head_rows(few, scratch, head, 0);
    for (int64_t range = 1; range < few.ranges; range++) {
      const RowStates part = head_rows(few, scratch, head, range);
      for (int64_t r = 0; r < few.rows; r++) merge_row(*few.plan, whole, part, r);
    }
    for (int64_t member = 0; member < few.heads_per_kv; member++)
      finish_rows(FewHead(few, scratch, whole, head, member).block);
  }
}

static void work_few(void* data) {
  FewJob& job = *static_cast<FewJob*>(data);
  const int64_t thread = increment(job.next_thread);
  if (thread >= job.threads) return;
  char* own = job.memory + job.scratch_offset + thread * job.scratch_bytes;
  int64_t call = 0;
  for (int64_t task = increment(job.next_task); task < job.tasks;) {
    while (call + 1 < job.count && job.calls[call + 1].first_task <= task) call++;
    const Few& few = job.calls[call];
    Arena arena = {reinterpret_cast<uintptr_t>(own), 0};
    const FewScratch scratch = lay_few_scratch(few, arena);
    const int64_t end = few.first_task + few.heads / few.together * few.ranges;
    for (; task < end; task = increment(job.next_task)) run_few_task(few, scratch, task - few.first_task);
  }
}

// Whether a call reads keys and values in place, and only once.
static bool are_few(const NMForwardArgs& args) {
  if (args.needs_grad || args.drop_below != 0) return false;
  const int64_t most = args.value_dim > kWideValue ? kFewQueriesWide : kFewQueries;
  return args.q_len <= most && args.q_len * (args.heads / args.kv_heads) <= kFewRows;
}

// Whether the rows of all heads for one key lie side by side, nearer than those of the next key.
static bool are_side_by_side(const Plan& plan, const int64_t strides[3]) {
  return plan.pages.table != nullptr || strides[1] < strides[2];
}

// Whether rows that choose independently keep nearly all keys between them, so that nearly all values are read.
static bool reads_most_values(const Plan& plan, int64_t rows) {
  constexpr double kMost = 0.85;
  double left = 1;
  for (int64_t r = 0; r < rows && left > 1 - kMost; r++) left *= 1 - static_cast<double>(plan.n) / plan.m;
  return left <= 1 - kMost;
}

static Few plan_few(Plan& plan) {
  const NMForwardArgs& args = *plan.args;
  plan.rows = 1;  // no padding
  Few few = {};
  few.plan = &plan;
  few.heads = args.batch * args.kv_heads;
  few.heads_per_kv = args.heads / args.kv_heads;
  few.rows = few.heads_per_kv * args.q_len;
  few.together = 1;
  const int64_t most = larger<int64_t>(1, smaller(ceil_div(args.kv_len, kRangeKeys), ceil_div(kRangeTasks, few.heads)));
  few.range_tiles = larger<int64_t>(1, ceil_div(plan.tiles, most));
  few.ranges = larger<int64_t>(1, ceil_div(plan.tiles, few.range_tiles));

  few.key_width = round_up(args.head_dim, kWidth);
  few.keys_in_place = args.dtype == DYNATTN_FLOAT32 && few.key_width == args.head_dim;
  few.values_in_place = args.dtype == DYNATTN_FLOAT32 && value_width(plan) == args.value_dim;
  few.values_soon = reads_most_values(plan, few.rows);
  Arena states = {0, 0};
  lay_rows(plan, few.rows, states);
  few.states_bytes = states.used;
  return few;
}

// The key heads of a task: as many as leave enough tasks for the threads, of those that all calls have.
static int64_t heads_together(const Few& few, int64_t tasks, int threads) {
  const NMForwardArgs& args = *few.plan->args;
  if (!are_side_by_side(*few.plan, args.key_strides) || !are_side_by_side(*few.plan, args.value_strides)) return 1;
  for (int64_t heads = args.kv_heads; heads > 1; heads--) {
    if (args.kv_heads % heads == 0 && tasks / heads >= kTasksEach * threads) return heads;
  }
  return 1;
}

// Takes the memory of planned calls, each for at least one query row, and prepares work_few().
// return_workspace(job.memory) ends it.
static int32_t open_few(FewJob& job, Few* calls, int64_t count) {
  job.calls = calls, job.count = count;
  double products = 0;
  int64_t heads = 0, tasks = 0;
  for (int64_t i = 0; i < count; i++) {
    tasks += calls[i].heads * calls[i].ranges;
    heads += calls[i].heads;
    products += products_of(*calls[i].plan->args);
  }
  job.threads = useful_threads(products, calls[0].plan->args->threads, tasks);
  for (int64_t i = 0; i < count; i++) {
    calls[i].together = heads_together(calls[i], tasks, job.threads);
    calls[i].first_task = job.tasks;
    job.tasks += calls[i].heads / calls[i].together * calls[i].ranges;
    Arena scratch = {0, 0};
    lay_few_scratch(calls[i], scratch);
    job.scratch_bytes = larger(job.scratch_bytes, scratch.used);
  }

  Arena all = {0, 0};
  all.take<int64_t>(heads);
  job.scratch_offset = all.used;
  all.take<char>(job.threads * job.scratch_bytes);
  const int64_t states_offset = all.used;
  for (int64_t i = 0; i < count; i++) {
    if (calls[i].ranges > 1) all.take<char>(calls[i].heads * calls[i].ranges * calls[i].states_bytes);
  }
  job.memory = static_cast<char*>(take_workspace(static_cast<size_t>(all.used)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  int64_t* finished = reinterpret_cast<int64_t*>(job.memory);
  memset(finished, 0, static_cast<size_t>(heads) * sizeof(int64_t));
  Arena states = {reinterpret_cast<uintptr_t>(job.memory + states_offset), 0};
  for (int64_t i = 0; i < count; i++) {
    Few& few = calls[i];
    few.finished = finished, finished += few.heads;
    few.states = few.ranges > 1 ? states.take<char>(few.heads * few.ranges * few.states_bytes) : nullptr;
  }
  return DYNATTN_OK;
}

static int32_t run_few(Plan& plan) {
  Few few = plan_few(plan);
  FewJob job = {};
  const int32_t status = open_few(job, &few, 1);
  if (status != DYNATTN_OK) return status;
  run_team(plan.args->parallel, job.threads, work_few, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
