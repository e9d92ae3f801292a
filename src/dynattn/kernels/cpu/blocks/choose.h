// Which blocks of a row are kept: those near the queries, the first ones and those that a mean cannot judge by force, and
// the best of the others by rank or by mass. Ties go to the lower block.
#pragma once

#include "blocks/means.h"

namespace dynattn::DYNATTN_NAMESPACE {

static bool is_near(const MeansPlan& plan, int64_t row, int64_t column) {
  const BlockForwardArgs& rule = *plan.rule;
  const int64_t start = column * plan.size;
  if (start < rule.sinks) return true;
  const int64_t first = row * plan.size + plan.offset;
  const int64_t last = smaller(first + plan.size, plan.args->kv_len) - 1;
  const int64_t end = smaller(start + plan.size, plan.args->kv_len) - 1;
  return rule.window > 0 && start < last + rule.window && end > first - rule.window;
}

// The numbers of the blocks that are not forced, in room.order; how many.
static int64_t list_others(const MeansPlan& plan, const MeansRoom& room) {
  int64_t others = 0;
  for (int64_t column = 0; column < plan.columns; column++) {
    if (room.counts[column] > 0 && room.forced[column] == 0) room.order[others++] = static_cast<int32_t>(column);
  }
  return others;
}

// Larger values first, of equal ones the lower block.
DYNATTN_INLINE bool is_before(const float* values, int32_t a, int32_t b) {
  return values[a] != values[b] ? values[a] > values[b] : a < b;
}

// Blocks as a heap: each is before both that hang from it. A template of the standard library would be one for all
// instruction sets.
static void sink(int32_t* heap, int64_t at, int64_t count, const float* values) {
  const int32_t moved = heap[at];
  for (int64_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
    if (child + 1 < count && is_before(values, heap[child + 1], heap[child])) child++;
    if (!is_before(values, heap[child], moved)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = moved;
}

static void make_heap(int32_t* heap, int64_t count, const float* values) {
  for (int64_t at = count / 2 - 1; at >= 0; at--) sink(heap, at, count, values);
}

// Takes the first block out.
static int32_t take_first(int32_t* heap, int64_t& count, const float* values) {
  const int32_t first = heap[0];
  heap[0] = heap[--count];
  if (count > 0) sink(heap, 0, count, values);
  return first;
}

static void keep_by_rank(const MeansPlan& plan, const MeansRoom& room, int64_t some, int64_t must, uint8_t* kept) {
  const BlockForwardArgs& rule = *plan.rule;
  int64_t others = list_others(plan, room);
  const int64_t share = ceil_div(some * rule.numerator, rule.denominator);
  int64_t left = smaller(larger(share, rule.floor) - must, others);
  if (left <= 0) return;
  for (int64_t i = 0; i < others; i++) {
    float& value = room.values[room.order[i]];
    if (value != value) value = INFINITY;
  }
  make_heap(room.order, others, room.values);
  for (; left > 0; left--) kept[take_first(room.order, others, room.values)] = 1;
}

// The weights of all blocks with an allowed pair; false where one of the values is NaN or infinite, which cannot be judged.
static bool weigh_blocks(const MeansPlan& plan, const MeansRoom& room) {
  float largest = -INFINITY, all = 0.0f;
  for (int64_t column = 0; column < plan.columns; column++) {
    if (room.counts[column] == 0) continue;
    if (!(room.values[column] < INFINITY)) return false;
    largest = larger(largest, room.values[column]);
  }
  for (int64_t column = 0; column < plan.columns; column++) {
    room.weights[column] = room.counts[column] > 0 ? expf(room.values[column] - largest) : 0.0f;
    all += room.weights[column];
  }
  for (int64_t column = 0; column < plan.columns; column++) room.weights[column] /= all;
  return true;
}

static void keep_by_mass(const MeansPlan& plan, const MeansRoom& room, uint8_t* kept) {
  int64_t others = list_others(plan, room);
  if (!weigh_blocks(plan, room)) {
    for (int64_t i = 0; i < others; i++) kept[room.order[i]] = 1;
    return;
  }
  float held = 0.0f;
  for (int64_t column = 0; column < plan.columns; column++) {
    if (room.forced[column] != 0) held += room.weights[column];
  }
  make_heap(room.order, others, room.weights);
  while (others > 0 && held < plan.rule->mass) {
    const int32_t next = take_first(room.order, others, room.weights);
    kept[next] = 1;
    held += room.weights[next];
  }
}

// One row of blocks, whose values and counts are known.
static void choose_row(const MeansPlan& plan, const MeansRoom& room, int64_t row, uint8_t* kept) {
  int64_t some = 0, must = 0;
  for (int64_t column = 0; column < plan.columns; column++) {
    const bool unlike = plan.rule->alike > 0.0f && (room.keys_alike[column] == 0 || room.queries_alike[row] == 0);
    const bool forced = room.counts[column] > 0 && (unlike || is_near(plan, row, column));
    some += room.counts[column] > 0, must += forced;
    room.forced[column] = kept[column] = forced;
    if (room.values[column] < -FLT_MAX) room.values[column] = -FLT_MAX;  // ranks before what may not be attended
  }
  if (plan.rule->mass > 0.0f) {
    keep_by_mass(plan, room, kept);
  } else {
    keep_by_rank(plan, room, some, must, kept);
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
