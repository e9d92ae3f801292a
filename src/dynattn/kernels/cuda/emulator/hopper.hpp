// The sm_90a pieces: barriers in shared memory, the copy engine with its swizzle, products of a warpgroup.
//
// Copies land when a thread waits at their barrier (or at once, as the Schedule says); until then the target is poison.
// Products run when they are waited for, with the registers they were given and the shared memory of that moment: a
// stage that is released too early is seen overwritten.
#pragma once

#include <algorithm>
#include <map>

#include "emulator.hpp"

namespace emulator {

struct SharedBarrier {
  int arrivals = 0, missing = 0;
  long bytes_missing = 0;
  unsigned phase = 0;
  std::vector<std::function<void()>> copies;  // that have not landed
};

// Barriers live at shared addresses; poisoned memory is none, so a new block starts without any.
inline std::map<uint32_t, SharedBarrier> shared_barriers;

inline SharedBarrier& barrier_at(uint32_t address, const char* operation) {
  shared_at(address, 8, 8, operation);
  const auto found = shared_barriers.find(address);
  if (found == shared_barriers.end()) fail("%s: no barrier was initialised at %u", operation, address);
  return found->second;
}
inline void end_phase_if_complete(SharedBarrier& barrier) {
  if (barrier.missing || barrier.bytes_missing) return;
  barrier.phase ^= 1;
  barrier.missing = barrier.arrivals;
  ++block.progress;
}

constexpr int WARPGROUP_THREADS = 128, MAX_COLUMNS = 128;

struct ProductOperands {
  float* accumulators;
  uint32_t a[4];  // in registers, or
  uint64_t a_shared;
  uint64_t b;
  uint32_t metadata;
  bool accumulate;
};
struct WarpgroupProduct {
  std::array<ProductOperands, WARPGROUP_THREADS> operands;
  void (*execute)(const WarpgroupProduct&);
};
struct Warpgroup {
  int arrived = 0;
  unsigned generation = 0;
  const char* operation = nullptr;
  WarpgroupProduct incoming;
  std::vector<WarpgroupProduct> open;
  std::vector<std::vector<WarpgroupProduct>> groups;
};
inline std::map<int, Warpgroup> warpgroups;

// Ordinary stores that products may not see yet. Of each 16 bytes: a bit for every lane of the storing warp that no fence
// followed, and one until a barrier has.
constexpr uint64_t NO_FENCE = 0xFFFFFFFF, NO_BARRIER = 1ull << 32;
inline std::array<uint64_t, SHARED_BYTES / 16> unseen;
inline std::map<int, std::vector<uint32_t>> stored_by_warp;
inline std::map<int, int> barrier_users;  // named barrier -> warpgroup

// Starts a block with neither barriers nor products nor stores.
inline void reset_hopper() {
  shared_barriers.clear();
  warpgroups.clear();
  unseen.fill(0);
  stored_by_warp.clear();
  barrier_users.clear();
}

// An operation of a whole warpgroup; the last thread to come runs `apply`.
template <class Apply>
void warpgroup_collective(const char* operation, Apply apply) {
  Warpgroup& group = warpgroups[block.current / WARPGROUP_THREADS];
  if (group.arrived && group.operation != operation) {
    fail("divergence: this thread is at %s, others of its warpgroup at %s", operation, group.operation);
  }
  group.operation = operation;
  const unsigned generation = group.generation;
  if (++group.arrived == WARPGROUP_THREADS) {
    apply(group);
    group.arrived = 0;
    ++group.generation;
    ++block.progress;
  } else {
    while (group.generation == generation) yield();
  }
}

// The 128-byte swizzle: bits 4 to 6 of an address are mixed with bits 7 to 9.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

}  // namespace emulator

namespace dynattn {

struct TensorMap {
  const unsigned short* base;
  int rank;
  long long sizes[5], strides[5];  // in elements, innermost first
  int box[5];
};

inline void barrier_init(u32 address, u32 arrivals) {
  emulator::shared_at(address, 8, 8, "mbarrier.init");
  emulator::SharedBarrier barrier;
  barrier.arrivals = barrier.missing = static_cast<int>(arrivals);
  emulator::shared_barriers[address] = barrier;
}
inline void barrier_init_fence() {}
inline void barrier_arrive(u32 address) {
  auto& barrier = emulator::barrier_at(address, "mbarrier.arrive");
  if (barrier.missing == 0) emulator::fail("mbarrier.arrive: more arrivals than the phase has");
  --barrier.missing;
  ++emulator::block.progress;
  emulator::end_phase_if_complete(barrier);
}
inline void barrier_arrive_and_expect(u32 address, u32 bytes) {
  emulator::barrier_at(address, "mbarrier.arrive.expect_tx").bytes_missing += bytes;
  barrier_arrive(address);
}
inline void barrier_wait(u32 address, u32 parity) {
  auto& barrier = emulator::barrier_at(address, "mbarrier.try_wait");
  while (barrier.phase == parity) {
    if (!barrier.copies.empty()) {
      const auto copies = std::move(barrier.copies);
      barrier.copies.clear();
      for (const auto& land : copies) land();
      ++emulator::block.progress;
      continue;
    }
    emulator::yield();
  }
}

inline int same_in_warp(int x) { return x; }

inline void copy_box_any(u32 target, const TensorMap& map, u32 address, std::array<int, 5> from, int rank) {
  using emulator::shared_at;
  if (map.rank != rank) emulator::fail("tensor copy: %d coordinates for a map of rank %d", rank, map.rank);
  if (map.box[0] * 2 != 128) emulator::fail("tensor copy: rows of the box must be the swizzle's 128 bytes");
  long rows = 1;
  for (int i = 1; i < rank; ++i) rows *= map.box[i];
  unsigned char* to = shared_at(target, 128 * rows, 1024, "tensor copy");
  const auto land = [=] {
    for (long row = 0; row < rows; ++row) {
      long long offset = from[0], rest = row;
      bool inside = true;
      for (int i = 1; i < rank; ++i) {
        const long long x = from[i] + rest % map.box[i];
        rest /= map.box[i];
        inside = inside && x >= 0 && x < map.sizes[i];
        offset += x * map.strides[i];
      }
      const long long columns = std::min<long long>(64, map.sizes[0] - from[0]);
      if (inside && columns > 0) emulator::check_readable(map.base + offset, 2 * columns, "tensor copy");
      for (int i = 0; i < 64; ++i) {
        const unsigned short x = inside && i < columns ? map.base[offset + i] : 0;
        const u32 place = emulator::swizzled(target + 128 * row + 2 * i);
        memcpy(emulator::shared_memory + place, &x, 2);
      }
    }
    auto& barrier = emulator::barrier_at(address, "tensor copy");
    barrier.bytes_missing -= 128 * rows;
    emulator::end_phase_if_complete(barrier);
  };
  emulator::barrier_at(address, "tensor copy");
  if (emulator::block.schedule.eager) return land();
  memset(to, emulator::POISON, 128 * rows);
  emulator::shared_barriers[address].copies.push_back(land);
}
inline void copy_box(u32 target, const TensorMap& map, u32 barrier, int x0, int x1, int x2, int x3) {
  copy_box_any(target, map, barrier, {x0, x1, x2, x3, 0}, 4);
}
inline void copy_box(u32 target, const TensorMap& map, u32 barrier, int x0, int x1, int x2, int x3, int x4) {
  copy_box_any(target, map, barrier, {x0, x1, x2, x3, x4}, 5);
}

// stmatrix: register j of lane 4g + t holds columns 2t, 2t + 1 of row g of matrix j, whose address is lane 8j + g's.
struct StoredMatrices {
  u32 address, r[4];
};
inline void store_matrices(u32 row_address, u32 r0, u32 r1, u32 r2, u32 r3) {
  const StoredMatrices own = {row_address, {r0, r1, r2, r3}};
  emulator::collective<int>("stmatrix", own, [](const StoredMatrices* in, int*) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row) {
        const u32 address = in[8 * matrix + row].address;
        unsigned char* to = emulator::shared_at(address, 16, 16, "stmatrix");
        for (int t = 0; t < 4; ++t) memcpy(to + 4 * t, &in[4 * row + t].r[matrix], 4);
        const unsigned bank = 1u << (address / 16 % 8);
        emulator::counts.bank_conflicts += (banks & bank) != 0;
        banks |= bank;
        emulator::unseen[address / 16] = emulator::NO_FENCE | emulator::NO_BARRIER;
        emulator::stored_by_warp[emulator::block.current / emulator::WARP].push_back(address / 16);
      }
    }
  });
}
inline void stores_fence() {
  for (const u32 place : emulator::stored_by_warp[emulator::block.current / emulator::WARP]) {
    emulator::unseen[place] &= ~(1ull << emulator::lane());
  }
}
inline void warpgroup_barrier(int id) {
  const int group = emulator::block.current / emulator::WARPGROUP_THREADS;
  if (id < 1 || id > 15 || emulator::barrier_users.emplace(id, group).first->second != group) {
    emulator::fail("bar.sync: barrier %d is another warpgroup's, or none", id);
  }
  emulator::warpgroup_collective("bar.sync", [=](emulator::Warpgroup&) {
    for (int warp = 4 * group; warp < 4 * group + 4; ++warp) {
      for (const u32 place : emulator::stored_by_warp[warp]) emulator::unseen[place] &= ~emulator::NO_BARRIER;
      emulator::stored_by_warp[warp].clear();
    }
  });
}
inline void store_floats(u32 address, const float (&x)[4]) {
  memcpy(emulator::shared_at(address, 16, 16, "st.shared"), x, 16);
}
inline void load_floats(u32 address, float (&x)[4]) {
  memcpy(x, emulator::shared_at(address, 16, 16, "ld.shared"), 16);
}
inline void warp_barrier() {
  emulator::collective<int>("bar.warp", 0, [](const int*, int*) {});
}
inline void add_to_memory(float* memory, const float (&x)[4]) {
  if (reinterpret_cast<uintptr_t>(memory) % 16) emulator::fail("red.v4: the address is not a multiple of 16");
  for (int i = 0; i < 4; ++i) memory[i] += x[i];
}

template <int COUNT>
void shrink_registers() {}
template <int COUNT>
void grow_registers() {}
template <int N>
void pin(float (&)[N][4]) {}

inline void products_fence() { emulator::warpgroup_collective("wgmma.fence", [](emulator::Warpgroup&) {}); }
inline void products_commit() {
  emulator::warpgroup_collective("wgmma.commit_group", [](emulator::Warpgroup& group) {
    group.groups.push_back(std::move(group.open));
    group.open.clear();
  });
}
template <int PENDING>
void products_wait() {
  emulator::warpgroup_collective("wgmma.wait_group", [](emulator::Warpgroup& group) {
    while (group.groups.size() > PENDING) {
      for (const auto& product : group.groups.front()) product.execute(product);
      group.groups.erase(group.groups.begin());
    }
  });
}

// Element (row of A or column of B `n`, depth `k`) of an operand: the descriptor's canonical layouts of the 128-byte
// swizzle. `depth_is_contiguous`: K-major (keys, a row holds depths), else MN-major (values; the instruction's "trans").
template <class Element>
float operand_element(u64 descriptor, int n, int k, bool depth_is_contiguous) {
  const u32 start = (descriptor & 0x3FFF) << 4, leading = (descriptor >> 16 & 0x3FFF) << 4,
            stride = (descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 62 != 1) emulator::fail("wgmma: only the 128-byte swizzle is emulated");
  const u32 address = depth_is_contiguous ? start + n / 8 * stride + n % 8 * 128 + 2 * k
                                          : start + n / 64 * leading + n % 64 * 2 + k / 8 * stride + k % 8 * 128;
  unsigned short x;
  memcpy(&x, emulator::shared_at(emulator::swizzled(address), 2, 2, "wgmma"), 2);
  if (emulator::unseen[emulator::swizzled(address) / 16]) {
    emulator::fail("wgmma: reads what was stored without a fence and a barrier after it");
  }
  return Element::value(x);
}

// Accumulators of 64 rows: what was stored of A, times B.
template <int DEPTH, int COLUMNS>
void accumulate(const emulator::WarpgroupProduct& product, const float (&a)[64][DEPTH], const bool (&stored)[64][DEPTH],
                const float (&b)[DEPTH][COLUMNS]) {
  for (int thread = 0; thread < emulator::WARPGROUP_THREADS; ++thread) {
    const auto& own = product.operands[thread];
    for (int i = 0; i < COLUMNS / 2; ++i) {
      const int row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (i >> 1 & 1);
      const int column = 8 * (i >> 2) + 2 * (thread & 3) + (i & 1);
      float sum = own.accumulate ? own.accumulators[i] : 0.0f;
      for (int k = 0; k < DEPTH; ++k) {
        if (stored[row][k]) sum += a[row][k] * b[k][column];
      }
      own.accumulators[i] = sum;
    }
  }
}

// Both operands in shared memory, one layout for both (wgmma could mix them).
template <class Element, int COLUMNS, bool TRANSPOSED>
void execute_shared_product(const emulator::WarpgroupProduct& product) {
  static float a[64][16], b[16][COLUMNS];
  static bool stored[64][16];
  ++emulator::counts.warpgroup_products;
  memset(stored, true, sizeof stored);
  const auto& first = product.operands[0];
  for (const auto& own : product.operands) {
    if (own.b != first.b || own.a_shared != first.a_shared) emulator::fail("wgmma: the descriptor differs between threads");
  }
  for (int k = 0; k < 16; ++k) {
    for (int m = 0; m < 64; ++m) a[m][k] = operand_element<Element>(first.a_shared, m, k, !TRANSPOSED);
    for (int n = 0; n < COLUMNS; ++n) b[k][n] = operand_element<Element>(first.b, n, k, !TRANSPOSED);
  }
  accumulate(product, a, stored, b);
}

template <class Element, int COLUMNS, int DEPTH, int SELECTOR>
void execute_product(const emulator::WarpgroupProduct& product) {
  constexpr bool SPARSE = DEPTH == 32;
  static float a[64][DEPTH], b[DEPTH][COLUMNS];
  static bool stored[64][DEPTH];
  ++(SPARSE ? emulator::counts.sparse_warpgroup_products : emulator::counts.warpgroup_products);
  memset(stored, 0, sizeof stored);
  for (int thread = 0; thread < emulator::WARPGROUP_THREADS; ++thread) {
    const auto& own = product.operands[thread];
    if (own.b != product.operands[0].b) emulator::fail("wgmma: the descriptor differs between threads");
    const int warp = thread / 32, lane = thread % 32;
    for (int j = 0; j < 4; ++j) {
      SparsePlace place = {lane / 4 + 8 * (j & 1), {2 * (lane & 3) + 8 * (j >> 1), 2 * (lane & 3) + 8 * (j >> 1) + 1}};
      if constexpr (SPARSE) {
        place = sparse_place(lane, j, SELECTOR, true,
                             [&](int from) { return product.operands[32 * warp + from].metadata; });
      }
      for (int i = 0; i < 2; ++i) {
        a[16 * warp + place.row][place.column[i]] = element<Element>(own.a[j], i);
        stored[16 * warp + place.row][place.column[i]] = true;
      }
    }
  }
  for (int k = 0; k < DEPTH; ++k) {
    for (int n = 0; n < COLUMNS; ++n) b[k][n] = operand_element<Element>(product.operands[0].b, n, k, !SPARSE);
  }
  accumulate(product, a, stored, b);
}

inline void issue_product(const emulator::ProductOperands& own, void (*execute)(const emulator::WarpgroupProduct&)) {
  auto& group = emulator::warpgroups[emulator::block.current / emulator::WARPGROUP_THREADS];
  group.incoming.operands[emulator::block.current % emulator::WARPGROUP_THREADS] = own;
  emulator::warpgroup_collective("wgmma.mma_async", [=](emulator::Warpgroup& group) {
    group.incoming.execute = execute;
    group.open.push_back(group.incoming);
  });
}
template <class Element>
void multiply_scores(float (&d)[16][4], const u32 (&a)[4], u64 b, bool accumulate) {
  issue_product({d[0], {a[0], a[1], a[2], a[3]}, 0, b, 0, accumulate}, execute_product<Element, 128, 16, 0>);
}
template <class Element, int SELECTOR, int FRAGMENTS>
void multiply_values(float (&d)[FRAGMENTS][4], const u32 (&a)[4], u64 b, u32 metadata, bool accumulate = true) {
  issue_product({d[0], {a[0], a[1], a[2], a[3]}, 0, b, metadata, accumulate},
                execute_product<Element, 8 * FRAGMENTS, 32, SELECTOR>);
}
template <class Element, bool TRANSPOSED, int FRAGMENTS>
void multiply_shared(float (&d)[FRAGMENTS][4], u64 a, u64 b, bool accumulate) {
  issue_product({d[0], {}, a, b, 0, accumulate}, execute_shared_product<Element, 8 * FRAGMENTS, TRANSPOSED>);
}

}  // namespace dynattn
