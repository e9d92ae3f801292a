// The machine instructions that both kernels use, each behind one small function.
//
// No CUDA header is included: NVRTC and nvcc have what is needed built in. Compiled by g++ with DYNATTN_EMULATOR, the
// same names come from the emulator, which runs the unmodified kernels on a CPU.
#pragma once

#ifdef DYNATTN_EMULATOR
#include "emulator/emulator.hpp"
#else

#define DYNATTN_DEVICE __device__ __forceinline__
#define DYNATTN_GRID_CONSTANT __grid_constant__
#define DYNATTN_SHARED_MEMORY(name, alignment) extern __shared__ __align__(alignment) unsigned char name[]

namespace dynattn {

using u32 = unsigned int;
using u64 = unsigned long long;

// ---- bits and lanes

DYNATTN_DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DYNATTN_DEVICE float float_of(u32 x) { return __uint_as_float(x); }
// The upper half of (high:low) << n.
DYNATTN_DEVICE u32 funnel_shift_left(u32 low, u32 high, int n) { return __funnelshift_l(low, high, n); }
DYNATTN_DEVICE u32 permute_bytes(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }
DYNATTN_DEVICE u32 shuffle_xor(u32 x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DYNATTN_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DYNATTN_DEVICE int shuffle_xor(int x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DYNATTN_DEVICE float shuffle(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
DYNATTN_DEVICE u32 ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
DYNATTN_DEVICE void block_barrier() { __syncthreads(); }
// This thread's number in its warp, read anew at each call: addresses that follow from it are computed where they are
// used, and not kept in registers from before a loop.
DYNATTN_DEVICE int lane_now() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// ---- arithmetic

DYNATTN_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DYNATTN_DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// a · b + c, rounded once: written out where two kernels must agree to the bit, whatever the compiler contracts.
DYNATTN_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DYNATTN_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }  // of a number and NaN it gives the number
DYNATTN_DEVICE float minimum(float a, float b) { return fminf(a, b); }
DYNATTN_DEVICE float maximum_or_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
DYNATTN_DEVICE float minimum_or_nan(float a, float b) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
// a - b. Only its sign bit is read. The instruction is opaque to the compiler, which would make a comparison
// and a select of it. A NaN result is the canonical 0x7fffffff, whose sign is plus (PTX ISA, "Floating Point
// Instructions"): inf - inf counts as a tie.
DYNATTN_DEVICE float difference(float a, float b) {
  float y;
  asm("sub.rn.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// ---- 16-bit elements

struct BFloat16 {
  static DYNATTN_DEVICE u32 pack(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
  }
  static DYNATTN_DEVICE float value(unsigned short x) { return float_of(static_cast<u32>(x) << 16); }
};
struct Float16 {
  static DYNATTN_DEVICE u32 pack(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
  }
  static DYNATTN_DEVICE float value(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
  }
};
struct TensorFloat32 {
  // Rounds to 10 bits of mantissa, ties away from 0. The hardware takes any float32 and ignores the lower bits of it.
  static DYNATTN_DEVICE u32 round(float x) {
    u32 y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
  }
};
template <class A, class B>
struct is_same {
  static constexpr bool value = false;
};
template <class A>
struct is_same<A, A> {
  static constexpr bool value = true;
};

// ---- shared memory

DYNATTN_DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
// Copies 16 bytes from global to shared memory. Where `valid` is false it writes zeros and reads nothing.
DYNATTN_DEVICE void copy16_async(u32 target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(valid ? 16 : 0));
}
DYNATTN_DEVICE void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Four 8 x 8 matrices of 16-bit elements; lane 8j+r gives the address of row r of matrix j, result j is its fragment.
DYNATTN_DEVICE void load_matrices(u32 (&r)[4], u32 row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row_address)
               : "memory");
}
DYNATTN_DEVICE void load_matrices_transposed(u32 (&r)[4], u32 row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row_address)
               : "memory");
}

// Four words at four addresses.
DYNATTN_DEVICE void load_words(u32 (&r)[4], const u32 (&addresses)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r[j]) : "r"(addresses[j]) : "memory");
}

// ---- matrix products of a warp

// c += A B with A 16 x 16 and B 16 x 8; with TF32, A is 16 x 8 and B is 8 x 8.
template <class Element>
DYNATTN_DEVICE void multiply_dense(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#define DYNATTN_MMA(SHAPE, TYPE)                                                                                     \
  asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"   \
               "{%0,%1,%2,%3};"                                                                                      \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (is_same<Element, BFloat16>::value) {
    DYNATTN_MMA("m16n8k16", "bf16");
  } else if constexpr (is_same<Element, Float16>::value) {
    DYNATTN_MMA("m16n8k16", "f16");
  } else {
    DYNATTN_MMA("m16n8k8", "tf32");
  }
#undef DYNATTN_MMA
}

// c += A B with A 16 x 32, two of every four elements stored, and B 32 x 8. With TF32, A is 16 x 16 with one of
// every two stored, and B is 16 x 8. In bytes and in metadata these are the same operand: a TF32 element stands for two
// of 16 bits.
// The plain `mma.sp` would do on sm_80 to sm_90; on later devices it is expanded badly, and the ordered form is native
// everywhere.
template <class Element, int SELECTOR>
DYNATTN_DEVICE void multiply_sparse(float (&c)[4], const u32 (&a)[4], const u32 (&b)[4], u32 metadata) {
#define DYNATTN_MMA_SP(SHAPE, TYPE)                                                                                  \
  asm volatile("mma.sp::ordered_metadata.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE ".f32 {%0,%1,%2,%3},"     \
               "{%4,%5,%6,%7},{%8,%9,%10,%11},{%0,%1,%2,%3},%12,%13;"                                                \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),             \
                 "r"(metadata), "n"(SELECTOR))
  if constexpr (is_same<Element, BFloat16>::value) {
    DYNATTN_MMA_SP("m16n8k32", "bf16");
  } else if constexpr (is_same<Element, Float16>::value) {
    DYNATTN_MMA_SP("m16n8k32", "f16");
  } else {
    DYNATTN_MMA_SP("m16n8k16", "tf32");
  }
#undef DYNATTN_MMA_SP
}

}  // namespace dynattn

#endif  // DYNATTN_EMULATOR
