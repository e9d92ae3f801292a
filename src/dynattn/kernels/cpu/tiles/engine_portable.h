// The tile engine in plain C++: AMX's own numbers, on every processor.
//
// A product of two bfloat16 numbers is exact in double precision, and its sum with a float is rounded there to 53 bits
// before it is rounded to 24. That gives the same as one rounding, since 53 ≥ 2 · 24 + 2 (Figueroa, "When is double
// rounding innocuous?", 1995).
#pragma once

namespace dynattn::DYNATTN_NAMESPACE {

// A float for a double, where results below 2^-126, as they are after rounding to 24 bits, become 0.
DYNATTN_INLINE float flushed(double x) {
  const double magnitude = x < 0 ? -x : x;
  const float rounded = static_cast<float>(x);
  return magnitude < 0x1.ffffffp-127 ? (x < 0 ? -0.0f : 0.0f) : rounded;
}

// The bfloat16 number in 16 bits, 0 below 2^-126.
DYNATTN_INLINE double widened(uint16_t bits) {
  const uint32_t word = (bits & 0x7f80u) == 0 ? (bits & 0x8000u) << 16 : uint32_t{bits} << 16;
  float x;
  memcpy(&x, &word, sizeof x);
  return static_cast<double>(x);
}

DYNATTN_INLINE float flushed_sum(float a, float b) { return flushed(static_cast<double>(a) + static_cast<double>(b)); }

DYNATTN_INLINE float normal_or_zero(float x) { return x < 0x1p-126f && x > -0x1p-126f ? 0.0f : x; }

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
    for (int row = 0; row < 16; row++) memcpy(a_[kI][row], from + row * stride, sizeof a_[kI][row]);
  }

  template <int kJ>
  void load_b(const char* from) {
    memcpy(b_[kJ], from, sizeof b_[kJ]);
  }

  template <int kI, int kJ>
  void multiply() {
    double columns[2][16][16];  // even and odd numbers of each pair and column
    for (int k = 0; k < 16; k++) {
      for (int n = 0; n < 16; n++) {
        columns[0][k][n] = widened(b_[kJ][k][2 * n]);
        columns[1][k][n] = widened(b_[kJ][k][2 * n + 1]);
      }
    }
    for (int m = 0; m < 16; m++) {
      float even[16] = {}, odd[16] = {};
      for (int k = 0; k < 16; k++) {
        const double first = widened(a_[kI][m][2 * k]), second = widened(a_[kI][m][2 * k + 1]);
        for (int n = 0; n < 16; n++) even[n] = flushed(static_cast<double>(even[n]) + first * columns[0][k][n]);
        for (int n = 0; n < 16; n++) odd[n] = flushed(static_cast<double>(odd[n]) + second * columns[1][k][n]);
      }
      float* sums = sums_[2 * kI + kJ][m];
      for (int n = 0; n < 16; n++) sums[n] = flushed_sum(normal_or_zero(sums[n]), flushed_sum(even[n], odd[n]));
    }
  }

  template <int kC>
  void store(float* to, int64_t stride) {
    for (int row = 0; row < 16; row++) {
      memcpy(reinterpret_cast<char*>(to) + row * stride, sums_[kC][row], sizeof sums_[kC][row]);
    }
  }

  void fence() {}

 private:
  float sums_[4][16][16];
  uint16_t a_[2][16][32];
  uint16_t b_[2][16][32];
};

}  // namespace dynattn::DYNATTN_NAMESPACE
