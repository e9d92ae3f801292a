// The tile engine on 64-bit ARM with BFDOT: a row of an accumulator is four registers, a pair of A is broadcast.
//
// Four rows stay in registers for a whole product: 16 accumulators, 4 vectors of B and a pair of A, of 32 registers.
// BFDOT adds both products of a pair and then the accumulator, and rounds to odd on the way, without subnormal numbers,
// so that its sums differ from the portable engine's by rounding. What is too large for a float becomes the largest
// float, to odd; it is stored as the infinity that it is everywhere else.
#pragma once

#include <arm_neon.h>

namespace dynattn::DYNATTN_NAMESPACE {

class Engine {
 public:
  template <int kC>
  void zero() {
    memset(sums_[kC], 0, sizeof sums_[kC]);
  }

  template <int kC>
  void load_sums(const float* from, int64_t stride) {
    for (int row = 0; row < 16; row++) {
      memcpy(sums_[kC][row], reinterpret_cast<const char*>(from) + row * stride, sizeof sums_[kC][row]);
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
    for (int first = 0; first < 16; first += 4) {
      float(*rows)[16] = sums_[2 * kI + kJ] + first;
      float32x4_t sums[4][4];
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) sums[i / 4][i % 4] = vld1q_f32(rows[i / 4] + i % 4 * 4);
      const char* pairs = a_[kI] + first * stride_;
      for (int k = 0; k < 16; k++, pairs += 4) {
        const uint16_t* columns = reinterpret_cast<const uint16_t*>(b_[kJ] + 64 * k);
        bfloat16x8_t b[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) b[i] = vreinterpretq_bf16_u16(vld1q_u16(columns + 8 * i));
#pragma GCC unroll 4
        for (int row = 0; row < 4; row++) {
          uint32_t numbers;
          memcpy(&numbers, pairs + row * stride_, sizeof numbers);
          const bfloat16x8_t a = vreinterpretq_bf16_u32(vdupq_n_u32(numbers));
#pragma GCC unroll 4
          for (int i = 0; i < 4; i++) sums[row][i] = vbfdotq_f32(sums[row][i], b[i], a);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) vst1q_f32(rows[i / 4] + i % 4 * 4, sums[i / 4][i % 4]);
    }
  }

  template <int kC>
  void store(float* to, int64_t stride) {
    const float32x4_t largest = vdupq_n_f32(0x1.fffffep127f), infinity = vdupq_n_f32(INFINITY);
    for (int row = 0; row < 16; row++) {
      float* const at = reinterpret_cast<float*>(reinterpret_cast<char*>(to) + row * stride);
      for (int i = 0; i < 16; i += 4) {
        const float32x4_t x = vld1q_f32(sums_[kC][row] + i);
        const float32x4_t turned = vbslq_f32(vdupq_n_u32(0x80000000u), x, infinity);  // infinity with the sign of x
        vst1q_f32(at + i, vbslq_f32(vcageq_f32(x, largest), turned, x));
      }
    }
  }

  void fence() {}

 private:
  float sums_[4][16][16];
  const char* a_[2];
  const char* b_[2];
  int64_t stride_;
};

}  // namespace dynattn::DYNATTN_NAMESPACE
