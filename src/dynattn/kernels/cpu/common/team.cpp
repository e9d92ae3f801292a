// Threads and memory for the kernels.
#include "common/team.h"

#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace dynattn {

int most_threads(int offered) {
  constexpr unsigned kTimesOver = 4;
  static const unsigned limit = kTimesOver * std::max(std::thread::hardware_concurrency(), 1u);
  return std::min(offered, static_cast<int>(limit));
}

void run_team(dynattn_parallel_fn parallel, int threads, void (*body)(void*), void* data) {
  if (threads <= 1) {
    body(data);
    return;
  }
  if (parallel != nullptr) {
    parallel(body, data, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> others;
  try {
    others.reserve(static_cast<size_t>(threads) - 1);
    for (int i = 1; i < threads; i++) others.emplace_back(body, data);
  } catch (const std::bad_alloc&) {  // the threads that did start, and this one, do all the work
  } catch (const std::system_error&) {
  }
  body(data);
  for (std::thread& thread : others) thread.join();
}

int useful_threads(dynattn_parallel_fn parallel, double products, int offered, int64_t tasks) {
  const double small_work = parallel != nullptr ? 4e5 : 3e6;  // some 10 and 75 µs of one thread
  if (products < small_work) return 1;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(most_threads(offered), tasks)));
}

double products_of(const NMForwardArgs& args) {
  return static_cast<double>(args.q_len) * static_cast<double>(args.kv_len) *
         static_cast<double>(args.head_dim + args.value_dim) * static_cast<double>(args.batch * args.heads);
}

namespace {

// A call's memory is kept up to this size, so that most calls neither map pages nor touch fresh ones.
constexpr size_t kKeepBytes = size_t{64} << 20;
constexpr size_t kAlignment = 64;

// In front of the memory that a caller sees.
struct alignas(kAlignment) Header {
  size_t bytes;
};

std::atomic<Header*> kept{nullptr};

}  // namespace

void* take_workspace(size_t bytes) {
  Header* header = kept.exchange(nullptr);
  if (header != nullptr && header->bytes < bytes) {
    free(header);
    header = nullptr;
  }
  if (header == nullptr) {
    void* memory = nullptr;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&memory, kAlignment, sizeof(Header) + bytes) != 0) return nullptr;
    header = new (memory) Header{bytes};
  }
  return header + 1;
}

void return_workspace(void* memory) {
  Header* header = static_cast<Header*>(memory) - 1;
  if (header->bytes <= kKeepBytes) header = kept.exchange(header);
  free(header);
}

}  // namespace dynattn
