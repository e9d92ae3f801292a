// What the instruction-set independent part gives to the kernels: threads and memory.
#pragma once

#include <stddef.h>

#include "dynattn_cpu.h"

namespace dynattn {

// The threads that a call may start, of those that it was offered: a few times as many as the processor runs at once,
// so that a number chosen for another machine still works, and no number overruns memory.
int most_threads(int offered);

// Runs body(data) on up to `threads` threads, the caller among them, and waits for all. Fewer may come: a body takes
// its work from a shared counter. `parallel` is an OpenMP runtime's GOMP_parallel; without it threads are started.
void run_team(dynattn_parallel_fn parallel, int threads, void (*body)(void*), void* data);

// Threads for a call of so many tasks: one where there is so little to do that waking others costs more than they bring,
// and no more than the processor runs, which would only cost memory and wait for one another.
int useful_threads(const NMForwardArgs& args, int64_t tasks);

// 64-byte aligned memory, kept for the next call where it is not large; NULL when there is none.
void* take_workspace(size_t bytes);
void return_workspace(void* memory);

}  // namespace dynattn
