// N:M attention, backward, for one instruction set. Compiled once for each.
//
// A task is a key head or, where heads are few, a part of its keys. It takes the part in sections whose packed keys and
// gradients stay in the second-level cache, and every section meets all query blocks that may see it. So one thread
// sums each row of dK and dV, in one order. dQ grows from section to section. Where a head has several parts, each
// part sums a dQ of its own, and the task that completes the head adds them up in order. Only shapes decide how a head
// is cut into parts, so that the number of threads changes no bit.
#include "backward/gradients.h"
#include "common/backward_parts.h"
#include "common/builds.h"
#include "common/team.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct BackwardJob {
  const BackwardPlan* plan;
  char* memory;
  int64_t* finished;                      // [head] parts done
  Cut cut;                                // in tiles
  int64_t d_query_rows;                   // [query head of the key head][row], padded
  int64_t d_query_offset, d_query_bytes;  // [head][part], where a head has several
  int64_t thread_offset, thread_bytes;    // [thread]
  int64_t next_task, next_thread;
};

// The memory of one thread.
struct BackwardThread {
  BackwardScratch scratch;
  Section section;
  float* d_query;  // unless parts have their own
};

static void plan_backward(BackwardPlan& plan, const NMBackwardArgs& args, const RowSums& sums) {
  plan.args = &args;
  plan.sums = sums;
  name_products(args, plan.upstream_args, plan.product_args);
  make_plan(plan.scores, args.forward);
  make_plan(plan.upstream, plan.upstream_args);
  make_plan(plan.product, plan.product_args);
  const int64_t rows = plan.scores.rows;
  const int64_t block = smaller<int64_t>(kBackwardQueryBlock / rows * rows, round_up(args.forward.q_len, rows));
  plan.scores.query_block = plan.upstream.query_block = plan.product.query_block = static_cast<int>(block);
}

static BackwardThread lay_thread(const BackwardJob& job, Arena& arena) {
  const BackwardPlan& plan = *job.plan;
  const NMForwardArgs& args = plan.args->forward;
  const int64_t rows = plan.scores.query_block;
  BackwardThread t;
  BackwardScratch& s = t.scratch;
  s.scores = lay_scratch(plan.scores, arena);
  s.grads = arena.take<float>(rows * args.value_dim + 2 * kWidth);
  s.d_scores = arena.take<float>(rows * plan.scores.tile);
  s.query_rows = arena.take<float>(kBackwardQueryBlock * value_width(plan.product));
  s.grad_rows = arena.take<float>(kBackwardQueryBlock * value_width(plan.scores));
  s.delta = arena.take<float>(rows);
  s.share = arena.take<float>(rows);
  s.poisoned = arena.take<uint8_t>(rows);
  s.strips = arena.take<Strip>(2);
  s.lists = arena.take<KeyList>(4);
  for (RowSet*& set : s.rows) set = arena.take<RowSet>(1);

  Section& section = t.section;
  section.room = job.cut.section * plan.scores.tile;
  section.keys = arena.take<float>(section.room * args.head_dim);
  section.values = arena.take<float>(section.room * args.value_dim);
  section.key_rows = arena.take<float>(section.room * value_width(plan.product));
  section.d_key = arena.take<float>(section.room * value_width(plan.product));
  section.d_value = arena.take<float>(section.room * value_width(plan.scores));
  const int64_t floats = job.cut.heads_per_kv * job.d_query_rows * value_width(plan.product);
  t.d_query = job.cut.parts > 1 ? nullptr : arena.take<float>(floats);
  return t;
}

static void open_section(const BackwardPlan& plan, int64_t head, int64_t first, int64_t end, Section& section) {
  const NMForwardArgs& args = plan.args->forward;
  const char* key = kv_head(args, args.key, args.key_strides, head);
  const char* value = kv_head(args, args.value, args.value_strides, head);
  section.first_tile = first;
  section.end_tile = end;
  section.key_bound = pack_keys(plan.scores, key, first, end, section.keys);
  section.value_bound = pack_keys(plan.upstream, value, first, end, section.values);
  Range seen;
  const int64_t tile_floats = plan.product.tile * value_width(plan.product);
  for (int64_t tile = first; tile < end; tile++) {
    pack_value_tile(plan.product, key, tile, section.key_rows + (tile - first) * tile_floats, seen);
  }
  const size_t room = static_cast<size_t>(section.room) * sizeof(float);
  memset(section.d_key, 0, room * static_cast<size_t>(value_width(plan.product)));
  memset(section.d_value, 0, room * static_cast<size_t>(value_width(plan.scores)));
}

// A row that lies in chunks `chunk_stride` apart, times a factor, in the caller's dtype.
static void write_chunks(const Plan& plan, char* to, float* row, int64_t chunk_stride, float factor) {
  const NMForwardArgs& args = *plan.args;
  const int64_t width = int64_t{plan.chunk} * kWidth;
  for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
    const int64_t start = chunk * width;
    write_row(to + start * element_size(args.dtype), row + chunk * chunk_stride, smaller(width, args.value_dim - start),
              factor, args.dtype);
  }
}

static void close_section(const BackwardPlan& plan, int64_t head, const Section& section) {
  const NMBackwardArgs& args = *plan.args;
  const int64_t first = section.first_tile * plan.scores.tile;
  const int64_t end = smaller(section.end_tile * plan.scores.tile, args.forward.kv_len);
  const int32_t dtype = args.forward.dtype;
  char* d_key = const_cast<char*>(kv_head(args.forward, args.d_key, args.d_key_strides, head));
  char* d_value = const_cast<char*>(kv_head(args.forward, args.d_value, args.d_value_strides, head));
  const int64_t key_width = int64_t{plan.product.chunk} * kWidth, value_width = int64_t{plan.scores.chunk} * kWidth;
  for (int64_t key = first; key < end; key++) {
    write_chunks(plan.product, d_key + key * args.d_key_strides[2] * element_size(dtype),
                 section.d_key + (key - first) * key_width, section.room * key_width, args.forward.scale);
    write_chunks(plan.scores, d_value + key * args.d_value_strides[2] * element_size(dtype),
                 section.d_value + (key - first) * value_width, section.room * value_width, 1.0f);
  }
}

// Computes delta, the reference that weights are relative to, and their factor. Rows that keep nothing, and rows of
// padding, get weights of 0.
static bool prepare_rows(const BackwardPlan& plan, const BackwardScratch& scratch, const QueryBlock& block) {
  const NMBackwardArgs& args = *plan.args;
  const NMForwardArgs& forward = args.forward;
  const int64_t head = block.batch * forward.heads + block.index, *grad_strides = args.grad_out_strides;
  const char* grads =
      element(args.grad_out, block.batch * grad_strides[0] + block.index * grad_strides[1], forward.dtype);
  const char* outs =
      element(forward.out, block.batch * forward.out_strides[0] + block.index * forward.out_strides[1], forward.dtype);
  const float unit = plan.scores.exponent == kLog2e ? 1.0f : fabsf(forward.scale);
  alignas(64) float grad_room[kMaxHeadDim], out_room[kMaxHeadDim];
  bool poisoned = false;
  for (int64_t i = 0; i < round_up(block.count, plan.scores.rows); i++) {
    const RowStates& rows = scratch.scores.rows;
    rows.reference[i] = INFINITY;
    rows.ceiling[i] = INFINITY;  // never raised
    scratch.delta[i] = 0.0f;
    scratch.share[i] = 1.0f;
    scratch.poisoned[i] = 0;
    if (i >= block.count) continue;
    const int64_t row = block.first + i, at = head * forward.q_len + row;
    const float logsumexp = forward.logsumexp[at];
    scratch.poisoned[i] = !(logsumexp < INFINITY);
    poisoned |= scratch.poisoned[i] != 0;
    if (fabsf(logsumexp) < INFINITY) rows.reference[i] = logsumexp / unit;
    if (plan.sums.sum != nullptr && is_rough(logsumexp, forward.dtype)) {
      rows.reference[i] = plan.sums.origin[at], scratch.share[i] = 1.0f / plan.sums.sum[at];
    }
    const float* grad =
        float_row(element(grads, row * grad_strides[2], forward.dtype), forward.dtype, forward.value_dim, grad_room);
    const float* out = float_row(element(outs, row * forward.out_strides[2], forward.dtype), forward.dtype,
                                 forward.value_dim, out_room);
    Vec sum = zero();
    for (int64_t k = 0; k < forward.value_dim; k += kWidth) {
      sum = fmadd(load_part(grad + k, forward.value_dim - k), load_part(out + k, forward.value_dim - k), sum);
    }
    scratch.delta[i] = reduce_add(sum) - grad_logsumexp(args, at);
  }
  return poisoned;
}

static void run_backward_query_block(const BackwardPlan& plan, const Section& section, const BackwardScratch& scratch,
                                     int64_t batch, int64_t index, int64_t first, float* d_query) {
  const NMBackwardArgs& args = *plan.args;
  const NMForwardArgs& forward = args.forward;
  PackedHead head = {};
  head.first_tile = section.first_tile;
  head.keys = section.keys;
  const int64_t count = smaller<int64_t>(plan.scores.query_block, forward.q_len - first);
  Scratch product = scratch.scores;
  product.scores = scratch.d_scores;
  product.rows.out = d_query;
  product.rows.out_stride = value_width(plan.product);
  BackwardQueryBlock block = {plan,
                              section,
                              scratch,
                              {plan.scores, head, scratch.scores, batch, index, first, count, false, true},
                              {plan.product, head, product, batch, index, first, count, false, true}};

  const char* query =
      element(forward.query, batch * forward.query_strides[0] + index * forward.query_strides[1], forward.dtype);
  const char* grad =
      element(args.grad_out, batch * args.grad_out_strides[0] + index * args.grad_out_strides[1], forward.dtype);
  const float query_bound = pack_queries(plan.scores, query, first, count, scratch.scores.queries);
  const float grad_bound = pack_queries(plan.upstream, grad, first, count, scratch.grads);
  lay_query_rows(plan.product, element(query, first * forward.query_strides[2], forward.dtype),
                 forward.query_strides[2], forward.head_dim, count, scratch.query_rows);
  lay_query_rows(plan.scores, element(grad, first * args.grad_out_strides[2], forward.dtype), args.grad_out_strides[2],
                 forward.value_dim, count, scratch.grad_rows);
  clear_rows(block.scores);
  const bool poisoned = prepare_rows(plan, scratch, block.scores);
  const float largest_score =
      query_bound * section.key_bound * larger(1.0f, plan.scores.multiplier) * static_cast<float>(forward.head_dim);
  const float largest_weight = grad_bound * section.value_bound * static_cast<float>(forward.value_dim);
  block.scores.careful =
      plan.scores.careful || poisoned || !(largest_score < kLargestScore) || !(largest_weight < kLargestScore);
  backward_tiles(block);
}

// Writes dQ for the query heads of one key head: the sum of its parts in order, times the scale.
static void write_d_query(const BackwardJob& job, int64_t head, float* d_query, int64_t part_floats) {
  const BackwardPlan& plan = *job.plan;
  const NMBackwardArgs& args = *plan.args;
  const NMForwardArgs& forward = args.forward;
  const int64_t stride = value_width(plan.product), *strides = args.d_query_strides;
  for (int64_t member = 0; member < job.cut.heads_per_kv; member++) {
    const int64_t index = head % forward.kv_heads * job.cut.heads_per_kv + member;
    for (int64_t row = 0; row < forward.q_len; row++) {
      float* sum = d_query + (member * job.d_query_rows + row) * stride;
      for (int64_t part = 1; part < job.cut.parts; part++) {
        for (int64_t k = 0; k < stride; k += kWidth) {
          store(sum + k, add(load(sum + k), load(sum + part * part_floats + k)));
        }
      }
      const int64_t at = head / forward.kv_heads * strides[0] + index * strides[1] + row * strides[2];
      write_row(static_cast<char*>(args.d_query) + at * element_size(forward.dtype), sum, forward.head_dim,
                forward.scale, forward.dtype);
    }
  }
}

static void run_part(const BackwardJob& job, BackwardThread& thread, int64_t head, int64_t part, float* d_query) {
  const BackwardPlan& plan = *job.plan;
  const NMForwardArgs& forward = plan.args->forward;
  const int64_t stride = value_width(plan.product);
  memset(d_query, 0, static_cast<size_t>(job.cut.heads_per_kv * job.d_query_rows * stride) * sizeof(float));
  const int64_t end = smaller((part + 1) * job.cut.part, plan.scores.tiles);
  for (int64_t tile = part * job.cut.part; tile < end; tile += job.cut.section) {
    open_section(plan, head, tile, smaller(tile + job.cut.section, end), thread.section);
    for (int64_t member = 0; member < job.cut.heads_per_kv; member++) {
      const int64_t index = head % forward.kv_heads * job.cut.heads_per_kv + member;
      for (int64_t first = 0; first < forward.q_len; first += plan.scores.query_block) {
        const int64_t last = smaller<int64_t>(first + plan.scores.query_block, forward.q_len) - 1;
        const int64_t first_key = tile * plan.scores.tile, keys = job.cut.section * plan.scores.tile;
        if (allowed_keys(plan.scores, last, first_key) == 0) continue;
        if (is_cut_off(plan.scores, area_of(plan.scores, first, last, first_key, keys))) continue;
        run_backward_query_block(plan, thread.section, thread.scratch, head / forward.kv_heads, index, first,
                                 d_query + (member * job.d_query_rows + first) * stride);
      }
    }
    close_section(plan, head, thread.section);
  }
}

static void work_backward(void* data) {
  BackwardJob& job = *static_cast<BackwardJob*>(data);
  char* own = job.memory + job.thread_offset + increment(job.next_thread) * job.thread_bytes;
  Arena arena = {reinterpret_cast<uintptr_t>(own), 0};
  BackwardThread thread = lay_thread(job, arena);
  for (int64_t task = increment(job.next_task); task < job.cut.tasks(); task = increment(job.next_task)) {
    const int64_t head = task / job.cut.parts, part = task % job.cut.parts;
    if (job.cut.parts == 1) {
      run_part(job, thread, head, part, thread.d_query);
      write_d_query(job, head, thread.d_query, 0);
      continue;
    }
    char* d_query = job.memory + job.d_query_offset + head * job.cut.parts * job.d_query_bytes;
    run_part(job, thread, head, part, reinterpret_cast<float*>(d_query + part * job.d_query_bytes));
    if (increment(job.finished[head]) == job.cut.parts - 1) {
      write_d_query(job, head, reinterpret_cast<float*>(d_query),
                    job.d_query_bytes / static_cast<int64_t>(sizeof(float)));
    }
  }
}

int32_t nm_backward(const NMBackwardArgs& args) {
  const NMForwardArgs& forward = args.forward;
  RoughRows rough;
  const int32_t status = rough.find(forward);
  if (status != DYNATTN_OK) return status;
  BackwardPlan plan;
  plan_backward(plan, args, rough.sums());
  BackwardJob job = {};
  job.plan = &plan;
  job.cut = cut_heads(forward, plan.scores.tiles, plan.scores.tile);
  if (job.cut.heads == 0) return DYNATTN_OK;
  job.d_query_rows = round_up(forward.q_len, plan.scores.rows) + plan.scores.rows;

  const int threads = useful_threads(forward.parallel, products_of(forward), forward.threads, job.cut.tasks());
  Arena own = {0, 0};
  lay_thread(job, own);
  job.thread_bytes = own.used;
  Arena all = {0, 0};
  all.take<char>(threads * job.thread_bytes);
  job.d_query_offset = all.used;
  Arena part = {0, 0};
  part.take<float>(job.cut.heads_per_kv * job.d_query_rows * value_width(plan.product));
  job.d_query_bytes = part.used;
  if (job.cut.parts > 1) all.take<char>(job.cut.tasks() * job.d_query_bytes);
  const int64_t finished_offset = all.used;
  all.take<int64_t>(job.cut.heads);

  job.memory = static_cast<char*>(take_workspace(static_cast<size_t>(all.used)));
  if (job.memory == nullptr) return DYNATTN_OUT_OF_MEMORY;
  job.finished = reinterpret_cast<int64_t*>(job.memory + finished_offset);
  memset(job.finished, 0, static_cast<size_t>(job.cut.heads) * sizeof(int64_t));
  run_team(forward.parallel, threads, work_backward, &job);
  return_workspace(job.memory);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
