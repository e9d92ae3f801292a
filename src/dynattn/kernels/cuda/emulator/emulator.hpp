// CUDA on a CPU, as far as the kernels need it: what intrinsics.cuh wraps, with the register layouts of the PTX ISA.
//
// Each instruction is written from the tables "Matrix Fragments for mma.m16n8k16", "... for sparse mma.m16n8k32" and
// "Sparsity selector" of the PTX ISA 9.0, lane = 4g + t. What hardware leaves undefined (illegal metadata, a lane that
// is elsewhere, an address out of bounds, unaligned copies) ends the launch with a message.
#pragma once

#include <cmath>
#include <type_traits>

#include "fibers.hpp"

#define DYNATTN_DEVICE inline
#define DYNATTN_GRID_CONSTANT
#define DYNATTN_SHARED_MEMORY(name, alignment) unsigned char* const name = emulator::shared_memory
#define __global__
#define __launch_bounds__(...)

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
inline Index3 threadIdx, blockIdx;

namespace emulator {

// How often each instruction ran (a warp's counts once), and ldmatrix row reads that met in a bank.
struct Counts {
  unsigned long shuffles, matrix_loads, products, sparse_products, bank_conflicts, warpgroup_products,
      sparse_warpgroup_products;
};
inline Counts counts;

// What asynchronous copies may read: the tensors of this launch and not a byte beside them.
struct Range {
  uintptr_t begin, end;
};
inline std::vector<Range> readable;
inline void check_readable(const void* source, size_t bytes, const char* operation) {
  const auto begin = reinterpret_cast<uintptr_t>(source);
  for (const Range& range : readable) {
    if (begin >= range.begin && begin + bytes <= range.end) return;
  }
  fail("%s: the source lies outside its tensor", operation);
}

}  // namespace emulator

namespace dynattn {

using u32 = uint32_t;
using u64 = uint64_t;

inline u32 bits_of(float x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(u32 bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline u32 funnel_shift_left(u32 low, u32 high, int n) {
  return static_cast<u32>(((static_cast<u64>(high) << 32 | low) << (n & 31)) >> 32);
}
inline u32 permute_bytes(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 y = 0;
  for (int i = 0; i < 4; ++i) y |= static_cast<u32>(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return y;
}

template <class T>
struct FromLane {
  T x;
  int lane;
};
template <class T>
T exchange_lanes(T x, int from) {
  return emulator::collective<T>("shfl", FromLane<T>{x, from}, [](const FromLane<T>* in, T* out) {
    ++emulator::counts.shuffles;
    for (int i = 0; i < emulator::WARP; ++i) out[i] = in[in[i].lane].x;
  });
}
inline u32 shuffle_xor(u32 x, int mask) { return exchange_lanes(x, emulator::lane() ^ mask); }
inline float shuffle_xor(float x, int mask) { return exchange_lanes(x, emulator::lane() ^ mask); }
inline int shuffle_xor(int x, int mask) { return exchange_lanes(x, emulator::lane() ^ mask); }
inline float shuffle(float x, int lane) { return exchange_lanes(x, lane); }
inline u32 ballot(bool x) {
  return emulator::collective<u32>("vote", x, [](const bool* in, u32* out) {
    u32 lanes = 0;
    for (int i = 0; i < emulator::WARP; ++i) lanes |= static_cast<u32>(in[i]) << i;
    for (int i = 0; i < emulator::WARP; ++i) out[i] = lanes;
  });
}
inline void block_barrier() { emulator::barrier(); }
inline int lane_now() { return emulator::lane(); }

inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline float maximum(float a, float b) { return std::fmax(a, b); }
inline float minimum(float a, float b) { return std::fmin(a, b); }
inline float canonical(float x) { return x != x ? float_of(0x7FFFFFFFu) : x; }
inline float maximum_or_nan(float a, float b) { return a != a || b != b ? canonical(NAN) : std::fmax(a, b); }
inline float minimum_or_nan(float a, float b) { return a != a || b != b ? canonical(NAN) : std::fmin(a, b); }
inline float difference(float a, float b) { return canonical(a - b); }

struct BFloat16 {
  static u32 bits(float x) {  // round to nearest even
    const u32 b = bits_of(x);
    return x != x ? 0x7FFFu : (b + 0x7FFFu + (b >> 16 & 1)) >> 16;
  }
  static u32 pack(float low, float high) { return bits(low) | bits(high) << 16; }
  static float value(unsigned short x) { return float_of(static_cast<u32>(x) << 16); }
};
struct Float16 {
  static u32 bits(float x) {
    if (x != x) return 0x7FFFu;
    const _Float16 h = static_cast<_Float16>(x);
    unsigned short b;
    memcpy(&b, &h, 2);
    return b;
  }
  static u32 pack(float low, float high) { return bits(low) | bits(high) << 16; }
  static float value(unsigned short x) {
    _Float16 h;
    memcpy(&h, &x, 2);
    return static_cast<float>(h);
  }
};
struct TensorFloat32 {
  static constexpr u32 IGNORED = 0x1FFF;  // bits of a float32 that the product does not read
  static u32 round(float x) {
    const u32 b = bits_of(x);
    return x != x ? 0x7FFFFFFFu : (b + 0x1000u) & ~IGNORED;
  }
};
template <class A, class B>
using is_same = std::is_same<A, B>;
template <class Element>
float element(u32 pair, int i) {
  return Element::value(static_cast<unsigned short>(pair >> 16 * i));
}

inline u32 shared_address(const void* p) {
  return static_cast<u32>(static_cast<const unsigned char*>(p) - emulator::shared_memory);
}
inline void copy16_async(u32 target, const void* source, bool valid) {
  unsigned char* to = emulator::shared_at(target, 16, 16, "cp.async");
  if (reinterpret_cast<uintptr_t>(source) % 16) emulator::fail("cp.async: source is not a multiple of 16");
  if (valid) emulator::check_readable(source, 16, "cp.async");
  const auto land = [=] { valid ? memcpy(to, source, 16) : memset(to, 0, 16); };
  if (emulator::block.schedule.eager) return land();
  memset(to, emulator::POISON, 16);  // until it lands, neither the old nor the new is there
  emulator::block.fibers[emulator::block.current].copies.push_back(land);
}
inline void copies_wait() {
  auto& copies = emulator::block.fibers[emulator::block.current].copies;
  for (const auto& land : copies) land();
  copies.clear();
}

struct FourRegisters {
  u32 r[4];
};
inline void load_matrices_any(u32 (&r)[4], u32 row_address, bool transposed) {
  const auto loaded = emulator::collective<FourRegisters>(
      transposed ? "ldmatrix.trans" : "ldmatrix", row_address, [=](const u32* rows, FourRegisters* out) {
        ++emulator::counts.matrix_loads;
        for (int matrix = 0; matrix < 4; ++matrix) {
          unsigned banks = 0;
          for (int i = 0; i < 8; ++i) {
            const unsigned bank = 1u << (rows[8 * matrix + i] / 16 % 8);
            emulator::counts.bank_conflicts += (banks & bank) != 0;
            banks |= bank;
          }
          for (int lane = 0; lane < emulator::WARP; ++lane) {
            u32 pair = 0;
            for (int i = 0; i < 2; ++i) {
              const int row = transposed ? 2 * (lane & 3) + i : lane >> 2;
              const int column = transposed ? lane >> 2 : 2 * (lane & 3) + i;
              unsigned short x;
              memcpy(&x, emulator::shared_at(rows[8 * matrix + row], 16, 16, "ldmatrix") + 2 * column, 2);
              pair |= static_cast<u32>(x) << 16 * i;
            }
            out[lane].r[matrix] = pair;
          }
        }
      });
  memcpy(r, loaded.r, sizeof r);
}
inline void load_matrices(u32 (&r)[4], u32 row_address) { load_matrices_any(r, row_address, false); }
inline void load_matrices_transposed(u32 (&r)[4], u32 row_address) { load_matrices_any(r, row_address, true); }

// Four words by each lane, at 32 addresses at a time: each bank serves one.
struct FourAddresses {
  u32 at[4];
};
inline void load_words(u32 (&r)[4], const u32 (&addresses)[4]) {
  const FourAddresses own = {{addresses[0], addresses[1], addresses[2], addresses[3]}};
  const auto loaded = emulator::collective<FourRegisters>("ld.shared", own, [](const FourAddresses* in, FourRegisters* out) {
    for (int j = 0; j < 4; ++j) {
      u32 banks[32];
      u32 used = 0;
      for (int lane = 0; lane < emulator::WARP; ++lane) {
        const u32 address = in[lane].at[j], bank = address / 4 % 32;
        emulator::counts.bank_conflicts += (used >> bank & 1) && banks[bank] != address;
        used |= 1u << bank;
        banks[bank] = address;
        memcpy(&out[lane].r[j], emulator::shared_at(address, 4, 4, "ld.shared"), 4);
      }
    }
  });
  memcpy(r, loaded.r, sizeof r);
}

struct ProductRegisters {
  u32 a[4], b[4];
  float c[4];
  u32 metadata;
};
struct Accumulators {
  float c[4];
};

// c += A B for A of 16 rows and DEPTH columns.
template <int DEPTH>
void multiply(const float (&a)[16][DEPTH], const bool (&stored)[16][DEPTH], const float (&b)[DEPTH][8],
              const ProductRegisters* in, Accumulators* out) {
  for (int lane = 0; lane < emulator::WARP; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane & 3) + (i & 1);
      float sum = in[lane].c[i];
      for (int k = 0; k < DEPTH; ++k) {
        if (stored[row][k]) sum += a[row][k] * b[k][column];  // what is not stored is not multiplied: no 0 · NaN
      }
      out[lane].c[i] = sum;
    }
  }
}
template <class Element, int DEPTH>
void gather_b(const ProductRegisters* in, float (&b)[DEPTH][8]) {
  for (int lane = 0; lane < emulator::WARP; ++lane) {
    for (int j = 0; j < DEPTH / 8; ++j) {
      for (int i = 0; i < 2; ++i) b[8 * j + 2 * (lane & 3) + i][lane >> 2] = element<Element>(in[lane].b[j], i);
    }
  }
}

inline float tf32(u32 bits) { return float_of(bits & ~TensorFloat32::IGNORED); }
template <int DEPTH>
void gather_b_words(const ProductRegisters* in, float (&b)[DEPTH][8]) {
  for (int lane = 0; lane < emulator::WARP; ++lane) {
    for (int j = 0; j < DEPTH / 4; ++j) b[4 * j + (lane & 3)][lane >> 2] = tf32(in[lane].b[j]);
  }
}

// TF32: A 16 x 8, of which a lane holds columns t and t + 4.
inline void multiply_dense_tf32(const ProductRegisters* in, Accumulators* out) {
  float full[16][8], b[8][8];
  bool stored[16][8];
  gather_b_words(in, b);
  for (int lane = 0; lane < emulator::WARP; ++lane) {
    for (int j = 0; j < 4; ++j) {
      const int row = lane / 4 + 8 * (j & 1), column = (lane & 3) + 4 * (j >> 1);
      full[row][column] = tf32(in[lane].a[j]);
      stored[row][column] = true;
    }
  }
  multiply(full, stored, b, in, out);
}

template <class Element>
void multiply_dense_halves(const ProductRegisters* in, Accumulators* out) {
  float full[16][16], b[16][8];
  bool stored[16][16];
  gather_b<Element>(in, b);
  for (int lane = 0; lane < emulator::WARP; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const int row = lane / 4 + 8 * (i >> 1 & 1), column = 2 * (lane & 3) + 8 * (i >> 2) + (i & 1);
      full[row][column] = element<Element>(in[lane].a[i >> 1], i & 1);
      stored[row][column] = true;
    }
  }
  multiply(full, stored, b, in, out);
}

template <class Element>
void multiply_dense(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  const ProductRegisters registers = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}, 0};
  const auto result = emulator::collective<Accumulators>(
      "mma", registers, [](const ProductRegisters* in, Accumulators* out) {
        ++emulator::counts.products;
        if constexpr (is_same<Element, TensorFloat32>::value) {
          multiply_dense_tf32(in, out);
        } else {
          multiply_dense_halves<Element>(in, out);
        }
      });
  memcpy(c, result.c, sizeof c);
}

// Where the two elements of register j of a lane stand among the 32 columns of the sparse operand.
struct SparsePlace {
  int row, column[2];
};
// Metadata of (row, half of the columns) stands in lane 4 (row % 8) + 2 selector + half, a nibble a group of four, rows
// from 8 on in the upper half word.
template <class Metadata>
SparsePlace sparse_place(int lane, int j, int selector, bool ordered, Metadata metadata_of_lane) {
  const int g = lane >> 2, t = lane & 3, upper_row = j & 1, half = j >> 1;
  const u32 nibble = metadata_of_lane(4 * g + 2 * selector + half) >> (4 * t + 16 * upper_row) & 15;
  const int first = nibble & 3, second = nibble >> 2;
  if (first == second || (ordered && first > second)) emulator::fail("illegal metadata nibble %x", nibble);
  return {g + 8 * upper_row, {16 * half + 4 * t + first, 16 * half + 4 * t + second}};
}

// TF32: A 16 x 16, one of every two stored: register j of a lane is one of columns 2t and 2t + 1 of its half, row g + 8
// (j % 2). Its nibble stands where that of four 16-bit columns would, and is 0x4 for the first and 0xE for the second.
template <int SELECTOR>
void multiply_sparse_tf32(const ProductRegisters* in, Accumulators* out) {
  float full[16][16] = {}, b[16][8];
  bool stored[16][16] = {};
  gather_b_words(in, b);
  for (int lane = 0; lane < emulator::WARP; ++lane) {
    const int g = lane >> 2, t = lane & 3;
    for (int j = 0; j < 4; ++j) {
      const int upper_row = j & 1, half = j >> 1;
      const u32 nibble = in[4 * g + 2 * SELECTOR + half].metadata >> (4 * t + 16 * upper_row) & 15;
      if (nibble != 0x4 && nibble != 0xE) emulator::fail("illegal metadata nibble %x of TF32", nibble);
      const int row = g + 8 * upper_row, column = 8 * half + 2 * t + (nibble == 0xE);
      full[row][column] = tf32(in[lane].a[j]);
      stored[row][column] = true;
    }
  }
  multiply(full, stored, b, in, out);
}

template <class Element, int SELECTOR>
void multiply_sparse_halves(const ProductRegisters* in, Accumulators* out) {
  float full[16][32] = {}, b[32][8];
  bool stored[16][32] = {};
  gather_b<Element>(in, b);
  for (int lane = 0; lane < emulator::WARP; ++lane) {
    for (int j = 0; j < 4; ++j) {
      const auto place = sparse_place(lane, j, SELECTOR, true, [=](int from) { return in[from].metadata; });
      for (int i = 0; i < 2; ++i) {
        full[place.row][place.column[i]] = element<Element>(in[lane].a[j], i);
        stored[place.row][place.column[i]] = true;
      }
    }
  }
  multiply(full, stored, b, in, out);
}

template <class Element, int SELECTOR>
void multiply_sparse(float (&c)[4], const u32 (&a)[4], const u32 (&b)[4], u32 metadata) {
  const ProductRegisters registers = {
      {a[0], a[1], a[2], a[3]}, {b[0], b[1], b[2], b[3]}, {c[0], c[1], c[2], c[3]}, metadata};
  const auto result = emulator::collective<Accumulators>(
      SELECTOR ? "mma.sp 1" : "mma.sp 0", registers, [](const ProductRegisters* in, Accumulators* out) {
        ++emulator::counts.sparse_products;
        if constexpr (is_same<Element, TensorFloat32>::value) {
          multiply_sparse_tf32<SELECTOR>(in, out);
        } else {
          multiply_sparse_halves<Element, SELECTOR>(in, out);
        }
      });
  memcpy(c, result.c, sizeof c);
}

}  // namespace dynattn
