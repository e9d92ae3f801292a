// What the instruction-set independent part gives to the kernels: threads and memory.
#pragma once

#include <stddef.h>

#include "dynattn_cpu.h"

namespace dynattn {

// Runs body(data) on up to `threads` threads, the caller among them, and waits for all. Fewer may come: a body takes
// its work from a shared counter. `parallel` is an OpenMP runtime's GOMP_parallel; without it threads are started.
void run_team(dynattn_parallel_fn parallel, int threads, void (*body)(void*), void* data);

// Threads for a call of so many tasks: waking them costs more than they bring where there is little to do.
int useful_threads(const NMForwardArgs& args, int64_t tasks);

// 64-byte aligned memory, kept for the next call where it is not large; NULL when there is none.
void* take_workspace(size_t bytes);
void return_workspace(void* memory);

}  // namespace dynattn
