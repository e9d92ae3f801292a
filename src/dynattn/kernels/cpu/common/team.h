// Threads and memory, which the part that does not depend on an instruction set gives to the kernels.
#pragma once

#include <stddef.h>

#include "dynattn_cpu.h"

namespace dynattn {

// How many of the threads that a call was offered it may start: at most a few times as many as the processor runs at
// once. So a number that was chosen for another machine still works, and no number overruns memory.
int most_threads(int offered);

// Runs body(data) on up to `threads` threads, the caller among them, and waits for all. Fewer may come, since a body
// takes its work from a shared counter. `parallel` is GOMP_parallel of an OpenMP runtime; without it threads are
// started.
void run_team(dynattn_parallel_fn parallel, int threads, void (*body)(void*), void* data);

// The number of threads, of those offered, for so many multiply-adds in so many tasks. It is one where there is so little
// to do that waking others, or starting them where there is no `parallel`, costs more than they bring. It is never more
// than the processor runs, since more would cost memory and wait for one another.
int useful_threads(dynattn_parallel_fn parallel, double products, int offered, int64_t tasks);

// The multiply-adds of a call, as useful_threads() takes them.
double products_of(const NMForwardArgs& args);

// 64-byte aligned memory, kept for the next call where it is not large; NULL when there is none.
void* take_workspace(size_t bytes);
void return_workspace(void* memory);

}  // namespace dynattn
