// A thread block on one CPU thread: every CUDA thread is a fiber that runs until it has to wait for others.
//
// Warps run one after the other, each as far as it can get before it waits at a barrier, so that a warp that a missing
// barrier lets run ahead does run ahead. The order of the warps can be reversed, and asynchronous copies can be
// told to land as early as they may or as late as they may: a kernel must give the same result in all of these (see Schedule).
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace emulator {

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 256 * 1024;
constexpr size_t SHARED_BYTES = 227 * 1024, GUARD_BYTES = 4096;
constexpr unsigned char POISON = 0xFF;  // NaN in every element type

struct Schedule {
  bool reversed = false;  // the last warp first
  bool eager = false;     // asynchronous copies land at once, not when they are waited for
};

struct Warp {
  int arrived = 0;
  unsigned generation = 0;
  const char* operation = nullptr;
  alignas(16) unsigned char in[WARP][64], out[WARP][64];
};

struct Fiber {
  jmp_buf place;  // where it yielded
  std::unique_ptr<char[]> stack;
  bool started = false, done = false;
  std::vector<std::function<void()>> copies;  // cp.async that have not landed
};

// The block that runs now. One at a time: blocks of a grid are independent.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  jmp_buf scheduler;
  Schedule schedule;
  std::function<void()> body;
  std::string error;
  int current = 0;
  int at_barrier = 0;
  unsigned barrier_generation = 0;
  unsigned long progress = 0;  // grows whenever something happens that may let a waiting thread go on
  size_t shared_bytes = 0;
};

inline Block block;
alignas(1024) inline unsigned char shared_memory[SHARED_BYTES + GUARD_BYTES];

// Fibers change places by jumps: swapcontext() would ask the kernel for the signal mask twice, ten times the cost.
inline void yield() {
  if (!_setjmp(block.fibers[block.current].place)) _longjmp(block.scheduler, 1);
}

// Ends the launch with a message; does not return.
[[noreturn]] inline void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (block.error.empty()) block.error = "thread " + std::to_string(block.current) + ": " + text;
  for (;;) yield();  // the scheduler gives up on the block
}

inline int lane() { return block.current % WARP; }
inline Warp& warp() { return block.warps[block.current / WARP]; }

// An operation of a whole warp: every lane brings `in`; the last to come runs `apply(in[32], out[32])`.
template <class Out, class In, class Apply>
Out collective(const char* operation, const In& in, Apply apply) {
  static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64);
  Warp& w = warp();
  if (w.arrived && w.operation != operation) {
    fail("divergence: this lane is at %s, others of its warp at %s", operation, w.operation);
  }
  w.operation = operation;
  memcpy(w.in[lane()], &in, sizeof in);
  const unsigned generation = w.generation;
  if (++w.arrived == WARP) {
    In ins[WARP];
    Out outs[WARP];
    for (int i = 0; i < WARP; ++i) memcpy(&ins[i], w.in[i], sizeof(In));
    apply(ins, outs);
    for (int i = 0; i < WARP; ++i) memcpy(w.out[i], &outs[i], sizeof(Out));
    w.arrived = 0;
    ++w.generation;
    ++block.progress;
  } else {
    while (w.generation == generation) yield();
  }
  Out out;
  memcpy(&out, w.out[lane()], sizeof out);
  return out;
}

inline void barrier() {
  const unsigned generation = block.barrier_generation;
  if (++block.at_barrier == static_cast<int>(block.fibers.size())) {
    block.at_barrier = 0;
    ++block.barrier_generation;
    ++block.progress;
  } else {
    while (block.barrier_generation == generation) yield();
  }
}

// Shared memory by address, checked against what the launch asked for.
inline unsigned char* shared_at(uint32_t address, size_t bytes, size_t alignment, const char* operation) {
  if (address % alignment) fail("%s: shared address %u is not a multiple of %zu", operation, address, alignment);
  if (address + bytes > block.shared_bytes) {
    fail("%s: shared address %u + %zu lies beyond the %zu bytes asked for", operation, address, bytes,
         block.shared_bytes);
  }
  return shared_memory + address;
}

inline void fiber_main() {
  block.body();
  block.fibers[block.current].done = true;
  ++block.progress;
  for (;;) yield();
}

// Lets the current fiber run until it yields.
inline void resume() {
  Fiber& fiber = block.fibers[block.current];
  if (_setjmp(block.scheduler)) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  ucontext_t beginning;
  getcontext(&beginning);
  beginning.uc_stack.ss_sp = fiber.stack.get();
  beginning.uc_stack.ss_size = STACK_BYTES;
  beginning.uc_link = nullptr;
  makecontext(&beginning, fiber_main, 0);
  setcontext(&beginning);
}

// Gives back what the blocks of a launch shared: each variant is a library of its own and would keep its stacks.
inline void release_block() { block = Block(); }

// Runs one block to its end; returns false, with block.error set, where it cannot.
template <class Begin>
bool run_block(int threads, size_t shared_bytes, Schedule schedule, std::function<void()> body, Begin begin) {
  block.fibers.resize(threads);  // the next blocks of a launch use the same stacks
  block.warps = std::vector<Warp>((threads + WARP - 1) / WARP);
  block.schedule = schedule;
  block.body = std::move(body);
  block.error.clear();
  block.at_barrier = 0;
  block.shared_bytes = shared_bytes;
  memset(shared_memory, POISON, sizeof shared_memory);
  for (Fiber& fiber : block.fibers) {
    if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);  // make_unique would write, and so use, all of it
    fiber.started = fiber.done = false;
    fiber.copies.clear();
  }
  const int warps = static_cast<int>(block.warps.size());
  for (;;) {
    const unsigned long before_round = block.progress;
    bool all_done = true;
    for (int i = 0; i < warps; ++i) {
      const int w = schedule.reversed ? warps - 1 - i : i;
      unsigned long before;
      do {
        before = block.progress;
        for (int thread = w * WARP; thread < (w + 1) * WARP && thread < threads; ++thread) {
          if (block.fibers[thread].done) continue;
          block.current = thread;
          begin(thread);
          resume();
          if (!block.error.empty()) return false;
          all_done = all_done && block.fibers[thread].done;
        }
      } while (block.progress != before);
    }
    if (all_done) break;
    if (block.progress == before_round) {
      block.error = "deadlock: every thread waits";
      return false;
    }
  }
  for (const Fiber& fiber : block.fibers) {
    if (!fiber.copies.empty()) {
      block.error = "a thread ended with copies in flight";
      return false;
    }
  }
  for (size_t i = shared_bytes; i < sizeof shared_memory; ++i) {
    if (shared_memory[i] != POISON) {
      block.error = "shared memory beyond what the launch asked for was written";
      return false;
    }
  }
  return true;
}

}  // namespace emulator
