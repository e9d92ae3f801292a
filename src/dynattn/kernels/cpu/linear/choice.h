// The choice of kept inputs alone, as a mask, for layers that share it.
#pragma once

#include "linear/kept_inputs.h"

namespace dynattn::DYNATTN_NAMESPACE {

struct ChoiceJob {
  const LinearArgs* args;
  uint64_t* words;  // [thread][word]
  int threads;
  int64_t next_token, next_thread;
};

constexpr int64_t kChosenAtOnce = 16;  // tokens that a thread takes

// The lowest eight bits, a byte each: every byte gets all of them, loses all but its own, and keeps whether it was there.
DYNATTN_INLINE void write_bytes(uint8_t* keep, uint64_t eight, int64_t count) {
  const uint64_t own = (eight & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
  const uint64_t bytes = (own + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
  count < 8 ? memcpy(keep, &bytes, static_cast<size_t>(count)) : memcpy(keep, &bytes, sizeof bytes);
}

static void work_choice(void* data) {
  ChoiceJob& job = *static_cast<ChoiceJob*>(data);
  const LinearArgs& args = *job.args;
  const int64_t thread = increment(job.next_thread);
  if (thread >= job.threads) return;
  uint64_t* const words = job.words + thread * kept_words(args.inputs);
  for (int64_t first = increment(job.next_token) * kChosenAtOnce; first < args.tokens;
       first = increment(job.next_token) * kChosenAtOnce) {
    for (int64_t token = first; token < smaller(first + kChosenAtOnce, args.tokens); token++) {
      find_kept(args, token, words);
      uint8_t* const keep = static_cast<uint8_t*>(args.out) + token * args.inputs;
      for (int64_t i = 0; i < args.inputs; i += 8) {
        write_bytes(keep + i, words[i / kWordInputs] >> i % kWordInputs, args.inputs - i);
      }
    }
  }
}

static int32_t run_choice(const LinearArgs& args) {
  ChoiceJob job = {};
  job.args = &args;
  const double work = static_cast<double>(args.tokens) * static_cast<double>(args.inputs * args.m);
  job.threads = useful_threads(args.parallel, work, args.threads, ceil_div(args.tokens, kChosenAtOnce));
  const int64_t words = job.threads * kept_words(args.inputs);
  job.words = static_cast<uint64_t*>(take_workspace(static_cast<size_t>(words) * sizeof(uint64_t)));
  if (job.words == nullptr) return DYNATTN_OUT_OF_MEMORY;
  run_team(args.parallel, job.threads, work_choice, &job);
  return_workspace(job.words);
  return DYNATTN_OK;
}

}  // namespace dynattn::DYNATTN_NAMESPACE
