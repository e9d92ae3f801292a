// The tile engine on AVX-512 with VDPBF16PS: a row of 16 sums is a register, a pair of A is broadcast.
//
// A product takes a cycle and its sum is there after six, so that sixteen rows hide that. They are eight rows of A by
// two tiles of B where there are two: each pair that is broadcast is then used twice, and ten loads feed sixteen
// products. Sums stay in their registers for all steps. They are made in the instruction's own order, which engine.h
// describes.
#pragma once

#include <immintrin.h>
#include <string.h>

namespace dynattn::DYNATTN_NAMESPACE {

// float32 by six products takes three times as long as by multiply-adds, of which there are half as many a cycle.
constexpr bool kTakesParts = false;

class Engine {
 public:
  void fence() {}
};

// sums[kRows][kB · 16] (+)= A · B, from one row of A on.
template <int kRows, int kB, bool kAdd>
DYNATTN_INLINE void multiply_rows(const char* rows, const Operand& a, const Operand& b, int64_t steps, float* sums,
                                  int64_t stride) {
  const int64_t one = a.stride, three = 3 * a.stride, four = 4 * a.stride;  // other distances are found by addressing
  __m512 sum[kRows][kB];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
#pragma GCC unroll 2
    for (int j = 0; j < kB; j++) {
      sum[row][j] = kAdd ? _mm512_loadu_ps(sums + row * stride + j * kTileRows) : _mm512_setzero_ps();
    }
  }
  const char* right = b.first;
  for (int64_t step = 0; step < steps; step++, rows += a.step, right += b.step) {
    for (int pair = 0; pair < kTileDepth / 2; pair++) {
      __m512i columns[kB];
#pragma GCC unroll 2
      for (int j = 0; j < kB; j++) columns[j] = _mm512_loadu_si512(right + j * b.second + pair * 64);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        int32_t numbers;
        memcpy(&numbers, rows + row / 4 * four + (row % 4 == 3 ? three : row % 4 * one) + pair * 4, sizeof numbers);
#pragma GCC unroll 2
        for (int j = 0; j < kB; j++) {
          sum[row][j] = _mm512_dpbf16_ps(sum[row][j], reinterpret_cast<__m512bh>(columns[j]),
                                         reinterpret_cast<__m512bh>(_mm512_set1_epi32(numbers)));
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
#pragma GCC unroll 2
    for (int j = 0; j < kB; j++) _mm512_storeu_ps(sums + row * stride + j * kTileRows, sum[row][j]);
  }
}

template <int kA, int kB, bool kAdd>
DYNATTN_INLINE void multiply_tiles(Engine&, const Operand& a, const Operand& b, const Terms&, int64_t steps,
                                   float* sums, int64_t stride) {
  constexpr int kRows = kTileRows / kB;
  for (int tile = 0; tile < kA; tile++, sums += kTileRows * stride) {
    const char* const rows = a.first + tile * a.second;
    multiply_rows<kRows, kB, kAdd>(rows, a, b, steps, sums, stride);
    if constexpr (kB == 2) {
      multiply_rows<kRows, kB, kAdd>(rows + kRows * a.stride, a, b, steps, sums + kRows * stride, stride);
    }
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
