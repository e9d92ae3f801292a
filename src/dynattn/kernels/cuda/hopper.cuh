// The machine instructions of sm_90a: the copy engine (TMA), barriers in shared memory, products of a warpgroup.
//
// The accumulators of an asynchronous product are ordinary registers to the compiler, which does not know that they
// change until products_wait(): pin() keeps it from moving or copying them across. Registers that a product takes are
// pinned before the products_fence() that precedes it, and again after the wait. The compiler's warning C7513
// ("serialized") says that it found a use of such a register while a product was in flight, C7519 that it had to add a
// fence; none may be left.
#pragma once

#include "intrinsics.cuh"

#ifdef DYNATTN_EMULATOR
#include "emulator/hopper.hpp"
#else

namespace dynattn {

struct alignas(64) TensorMap {  // CUtensorMap, opaque
  u64 words[16];
};

// ---- barriers: a phase ends when all arrivals have come and all announced bytes have landed

DYNATTN_DEVICE void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
DYNATTN_DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DYNATTN_DEVICE void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DYNATTN_DEVICE void barrier_arrive_and_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits for the end of the phase with this parity.
DYNATTN_DEVICE void barrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }" ::"r"(
          barrier),
      "r"(parity)
      : "memory");
}

// Tells the compiler that all lanes of a warp have the same number: what follows from it goes into uniform registers.
DYNATTN_DEVICE int same_in_warp(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// ---- copies: a box of a tensor to shared memory, rows of 128 bytes swizzled; what lies outside the tensor becomes 0

DYNATTN_DEVICE void copy_box(u32 target, const TensorMap& map, u32 barrier, int x0, int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4,%5,%6}], "
      "[%2];" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}
DYNATTN_DEVICE void copy_box(u32 target, const TensorMap& map, u32 barrier, int x0, int x1, int x2, int x3, int x4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3,%4,%5,%6,%7}], [%2];" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
      : "memory");
}

// ---- ordinary stores that products read: each writing thread says so, before the barrier at which the products wait

// Four 8 x 8 matrices of 16-bit elements; lane 8j + r gives the address of row r of matrix j, r[j] is its fragment.
DYNATTN_DEVICE void store_matrices(u32 row_address, u32 r0, u32 r1, u32 r2, u32 r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(row_address), "r"(r0), "r"(r1),
               "r"(r2), "r"(r3)
               : "memory");
}
DYNATTN_DEVICE void stores_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// A barrier of one warpgroup; `id` from 1 to 15, a different one for each.
DYNATTN_DEVICE void warpgroup_barrier(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }

// ---- from the threads of one warpgroup to those of another

DYNATTN_DEVICE void store_floats(u32 address, const float (&x)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
}
DYNATTN_DEVICE void load_floats(u32 address, float (&x)[4]) {
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(address)
               : "memory");
}
DYNATTN_DEVICE void warp_barrier() { __syncwarp(); }

// ---- sums in device memory: memory += x, element by element, and nothing comes back

DYNATTN_DEVICE void add_to_memory(float* memory, const float (&x)[4]) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(memory), "f"(x[0]), "f"(x[1]), "f"(x[2]),
               "f"(x[3])
               : "memory");
}

// ---- registers of a warpgroup

template <int COUNT>
DYNATTN_DEVICE void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
DYNATTN_DEVICE void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int N>
DYNATTN_DEVICE void pin(float (&x)[N][4]) {
#pragma unroll
  for (int i = 0; i < N * 4; ++i) asm volatile("" : "+f"(x[i / 4][i % 4])::"memory");
}

// ---- products of a warpgroup: 64 rows, A in registers or in shared memory, B in shared memory, through descriptors

DYNATTN_DEVICE void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DYNATTN_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>  // all but the latest PENDING groups of products are done
DYNATTN_DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// clang-format off
#define DYNATTN_ACC4(d, j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define DYNATTN_ACC32(d, j) DYNATTN_ACC4(d, j), DYNATTN_ACC4(d, j + 1), DYNATTN_ACC4(d, j + 2), DYNATTN_ACC4(d, j + 3), \
  DYNATTN_ACC4(d, j + 4), DYNATTN_ACC4(d, j + 5), DYNATTN_ACC4(d, j + 6), DYNATTN_ACC4(d, j + 7)
#define DYNATTN_REGISTERS_0_31 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define DYNATTN_REGISTERS_32_63 \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d = A B, or d += A B where `accumulate`; B = Kᵀ of 128 keys, 16 columns of the head, rows of K along the columns.
template <class Element>
DYNATTN_DEVICE void multiply_scores(float (&d)[16][4], const u32 (&a)[4], u64 b, bool accumulate) {
#define DYNATTN_WGMMA(TYPE)                                                                                            \
  asm volatile("{ .reg .pred add; setp.ne.b32 add, %69, 0; "                                                           \
               "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " "                                        \
               "{" DYNATTN_REGISTERS_0_31 "," DYNATTN_REGISTERS_32_63 "}, {%64,%65,%66,%67}, %68, add, 1, 1, 0; }"     \
               : DYNATTN_ACC32(d, 0), DYNATTN_ACC32(d, 8)                                                              \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)))
  if constexpr (is_same<Element, BFloat16>::value) {
    DYNATTN_WGMMA("bf16");
  } else {
    DYNATTN_WGMMA("f16");
  }
#undef DYNATTN_WGMMA
}

// d = A B, or d += A B where `accumulate`; A 64 x 16 and B 16 columns deep, as wide as d, both in shared memory. Their
// lines lie along the depth, or, TRANSPOSED, across it.
template <class Element, bool TRANSPOSED>
DYNATTN_DEVICE void multiply_shared(float (&d)[8][4], u64 a, u64 b, bool accumulate) {
#define DYNATTN_WGMMA(TYPE)                                                                                            \
  asm volatile("{ .reg .pred add; setp.ne.b32 add, %34, 0; "                                                           \
               "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "                                         \
               "{" DYNATTN_REGISTERS_0_31 "}, %32, %33, add, 1, 1, %35, %35; }"                                        \
               : DYNATTN_ACC32(d, 0)                                                                                   \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(TRANSPOSED ? 1 : 0))
  if constexpr (is_same<Element, BFloat16>::value) {
    DYNATTN_WGMMA("bf16");
  } else {
    DYNATTN_WGMMA("f16");
  }
#undef DYNATTN_WGMMA
}
template <class Element, bool TRANSPOSED>
DYNATTN_DEVICE void multiply_shared(float (&d)[16][4], u64 a, u64 b, bool accumulate) {
#define DYNATTN_WGMMA(TYPE)                                                                                            \
  asm volatile("{ .reg .pred add; setp.ne.b32 add, %66, 0; "                                                           \
               "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " "                                        \
               "{" DYNATTN_REGISTERS_0_31 "," DYNATTN_REGISTERS_32_63 "}, %64, %65, add, 1, 1, %67, %67; }"            \
               : DYNATTN_ACC32(d, 0), DYNATTN_ACC32(d, 8)                                                              \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(TRANSPOSED ? 1 : 0))
  if constexpr (is_same<Element, BFloat16>::value) {
    DYNATTN_WGMMA("bf16");
  } else {
    DYNATTN_WGMMA("f16");
  }
#undef DYNATTN_WGMMA
}

// d = A B, or d += A B, with A 64 x 32, two of every four stored, and B = V of 32 keys, as wide as d, columns of V along
// the rows. There is no ordered form of this instruction; the metadata is ordered all the same.
template <class Element, int SELECTOR>
DYNATTN_DEVICE void multiply_values(float (&d)[8][4], const u32 (&a)[4], u64 b, u32 metadata, bool accumulate = true) {
#define DYNATTN_WGMMA_SP(TYPE)                                                                                         \
  asm volatile("{ .reg .pred add; setp.ne.b32 add, %39, 0; "                                                           \
               "wgmma.mma_async.sp.sync.aligned.m64n64k32.f32." TYPE "." TYPE " "                                      \
               "{" DYNATTN_REGISTERS_0_31 "}, {%32,%33,%34,%35}, %36, %37, %38, add, 1, 1, 1; }"                       \
               : DYNATTN_ACC32(d, 0)                                                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(metadata), "n"(SELECTOR),                     \
                 "r"(static_cast<int>(accumulate)))
  if constexpr (is_same<Element, BFloat16>::value) {
    DYNATTN_WGMMA_SP("bf16");
  } else {
    DYNATTN_WGMMA_SP("f16");
  }
#undef DYNATTN_WGMMA_SP
}
template <class Element, int SELECTOR>
DYNATTN_DEVICE void multiply_values(float (&d)[16][4], const u32 (&a)[4], u64 b, u32 metadata, bool accumulate = true) {
#define DYNATTN_WGMMA_SP(TYPE)                                                                                         \
  asm volatile("{ .reg .pred add; setp.ne.b32 add, %71, 0; "                                                           \
               "wgmma.mma_async.sp.sync.aligned.m64n128k32.f32." TYPE "." TYPE " "                                     \
               "{" DYNATTN_REGISTERS_0_31 "," DYNATTN_REGISTERS_32_63 "}, {%64,%65,%66,%67}, %68, %69, %70, "          \
               "add, 1, 1, 1; }"                                                                                       \
               : DYNATTN_ACC32(d, 0), DYNATTN_ACC32(d, 8)                                                              \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(metadata), "n"(SELECTOR),                     \
                 "r"(static_cast<int>(accumulate)))
  if constexpr (is_same<Element, BFloat16>::value) {
    DYNATTN_WGMMA_SP("bf16");
  } else {
    DYNATTN_WGMMA_SP("f16");
  }
#undef DYNATTN_WGMMA_SP
}
// clang-format on

}  // namespace dynattn

#endif  // DYNATTN_EMULATOR
