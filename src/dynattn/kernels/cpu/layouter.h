// Memory that a call lays out once, and counters that its threads share.
#pragma once

#include "softmax.h"

namespace dynattn::DYNATTN_NAMESPACE {

DYNATTN_INLINE int64_t read(const int64_t& counter) { return __atomic_load_n(&counter, __ATOMIC_ACQUIRE); }
DYNATTN_INLINE int64_t count(int64_t& counter) { return __atomic_fetch_add(&counter, 1, __ATOMIC_ACQ_REL); }

// Arrays laid out one after the other in one piece of memory, each on a cache line of its own.
struct Layouter {
  uintptr_t base;  // 0 to learn the size only
  int64_t used;

  template <class T>
  T* take(int64_t count) {
    T* at = reinterpret_cast<T*>(base + static_cast<uintptr_t>(used));
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return at;
  }
};

static RowStates lay_rows(const Plan& plan, int64_t rows, Layouter& layouter) {
  RowStates states;
  states.reference = layouter.take<float>(rows);
  states.threshold = layouter.take<float>(rows);
  states.sum = layouter.take<float>(rows * kWidth);
  states.dropped = layouter.take<float>(rows * kWidth);
  states.out_stride = value_width(plan);
  states.out = layouter.take<float>(rows * states.out_stride);
  states.kept = layouter.take<int32_t>(rows);
  states.allowed = layouter.take<int32_t>(rows);
  states.poisoned = layouter.take<uint8_t>(rows);
  return states;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
