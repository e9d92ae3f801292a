// The memory of a call, laid out in one piece, and the counters that its threads share.
#pragma once

#include "simd/simd.h"

namespace dynattn::DYNATTN_NAMESPACE {

// Counters that several threads read and increment. increment() returns the value before.
DYNATTN_INLINE int64_t read(const int64_t& counter) { return __atomic_load_n(&counter, __ATOMIC_ACQUIRE); }
DYNATTN_INLINE int64_t increment(int64_t& counter) { return __atomic_fetch_add(&counter, 1, __ATOMIC_ACQ_REL); }

// Arrays laid out one after the other in one piece of memory, each on a cache line of its own.
struct Arena {
  uintptr_t base;  // 0 to learn the size only
  int64_t used;

  template <class T>
  T* take(int64_t count) {
    T* at = reinterpret_cast<T*>(base + static_cast<uintptr_t>(used));
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return at;
  }
};

}  // namespace dynattn::DYNATTN_NAMESPACE
