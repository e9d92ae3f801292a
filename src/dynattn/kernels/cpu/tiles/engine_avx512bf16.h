// The tile engine on AVX-512 with VDPBF16PS: a row of an accumulator is a register, a pair of A is broadcast.
//
// Sixteen rows stay in registers for a whole product, and are in memory between two: 32 moves for 256 products. Sums
// are made in the instruction's own order, which engine.h describes.
#pragma once

#include <immintrin.h>

namespace dynattn::DYNATTN_NAMESPACE {

class Engine {
 public:
  template <int kC>
  void zero() {
#pragma GCC unroll 16
    for (int row = 0; row < 16; row++) sums_[kC][row] = _mm512_setzero_ps();
  }

  template <int kC>
  void load_sums(const float* from, int64_t stride) {
#pragma GCC unroll 16
    for (int row = 0; row < 16; row++) {
      sums_[kC][row] = _mm512_loadu_ps(reinterpret_cast<const char*>(from) + row * stride);
    }
  }

  template <int kI>
  void load_a(const char* from, int64_t stride) {
    a_[kI] = from;
    stride_ = stride;
  }

  template <int kJ>
  void load_b(const char* from) {
    b_[kJ] = from;
  }

  template <int kI, int kJ>
  void multiply() {
    __m512 sums[16];
#pragma GCC unroll 16
    for (int row = 0; row < 16; row++) sums[row] = sums_[2 * kI + kJ][row];
    const char* pairs = a_[kI];
    for (int k = 0; k < 16; k++, pairs += 4) {
      const __m512i columns = _mm512_loadu_si512(b_[kJ] + 64 * k);
      const char* pair = pairs;
#pragma GCC unroll 16
      for (int row = 0; row < 16; row++, pair += stride_) {
        int32_t numbers;
        memcpy(&numbers, pair, sizeof numbers);
        sums[row] = _mm512_dpbf16_ps(sums[row], reinterpret_cast<__m512bh>(columns),
                                     reinterpret_cast<__m512bh>(_mm512_set1_epi32(numbers)));
      }
    }
#pragma GCC unroll 16
    for (int row = 0; row < 16; row++) sums_[2 * kI + kJ][row] = sums[row];
  }

  template <int kC>
  void store(float* to, int64_t stride) {
#pragma GCC unroll 16
    for (int row = 0; row < 16; row++) {
      _mm512_storeu_ps(reinterpret_cast<char*>(to) + row * stride, sums_[kC][row]);
    }
  }

  void fence() {}

 private:
  __m512 sums_[4][16];
  const char* a_[2];
  const char* b_[2];
  int64_t stride_;
};

}  // namespace dynattn::DYNATTN_NAMESPACE
