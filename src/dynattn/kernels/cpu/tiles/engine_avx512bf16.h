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
constexpr bool kPicks = true;

class Engine {
 public:
  void fence() {}
};

// Rows of sums into registers; zeros where nothing is added to.
template <int kRows, int kB, bool kAdd>
DYNATTN_INLINE void load_rows(const float* sums, int64_t stride, __m512 (&sum)[kRows][kB]) {
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
#pragma GCC unroll 2
    for (int j = 0; j < kB; j++) {
      sum[row][j] = kAdd ? _mm512_loadu_ps(sums + row * stride + j * kTileRows) : _mm512_setzero_ps();
    }
  }
}

template <int kRows, int kB>
DYNATTN_INLINE void store_rows(const __m512 (&sum)[kRows][kB], float* sums, int64_t stride) {
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
#pragma GCC unroll 2
    for (int j = 0; j < kB; j++) _mm512_storeu_ps(sums + row * stride + j * kTileRows, sum[row][j]);
  }
}

// sums[kRows][kB · 16] (+)= A · B, from one row of A on.
template <int kRows, int kB, bool kAdd>
DYNATTN_INLINE void multiply_rows(const char* rows, const Operand& a, const Operand& b, int64_t steps, float* sums,
                                  int64_t stride) {
  const int64_t one = a.stride, three = 3 * a.stride, four = 4 * a.stride;  // other distances are found by addressing
  __m512 sum[kRows][kB];
  load_rows<kRows, kB, kAdd>(sums, stride, sum);
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
  store_rows<kRows, kB>(sum, sums, stride);
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

// Four or eight numbers in each quarter of a register.
template <int kSpan>
DYNATTN_INLINE __m512i broadcast_span(const char* numbers) {
  if constexpr (kSpan == 8) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers)));
  } else {
    int64_t four;
    memcpy(&four, numbers, sizeof four);
    return _mm512_set1_epi64(four);
  }
}

// Rows of A, 64 bytes apart, by what is picked: a span's numbers are broadcast, and each column takes two of them.
// Shuffles run beside products, on units of their own but for one.
template <int kRows, int kB, int kSpan>
DYNATTN_INLINE void multiply_picked_rows(const char* rows, const Picks& picks, float* sums, int64_t stride) {
  const uint32_t *numbers = picks.numbers, *places = picks.places;
  __m512 sum[kRows][kB];
  load_rows<kRows, kB, true>(sums, stride, sum);
  for (int64_t step = 0; step < picks.steps; step++, rows += picks.step) {
    for (int at = 0; at < kTileDepth; at += kSpan, numbers += 16, places += 16) {
      __m512i pairs[kB], from[kB];
#pragma GCC unroll 2
      for (int j = 0; j < kB; j++) {
        pairs[j] = _mm512_loadu_si512(numbers + j * picks.second);
        from[j] = _mm512_loadu_si512(places + j * picks.second);
      }
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        const __m512i span = broadcast_span<kSpan>(rows + row * 64 + at * 2);
#pragma GCC unroll 2
        for (int j = 0; j < kB; j++) {
          sum[row][j] = _mm512_dpbf16_ps(sum[row][j], reinterpret_cast<__m512bh>(pairs[j]),
                                         reinterpret_cast<__m512bh>(_mm512_shuffle_epi8(span, from[j])));
        }
      }
    }
  }
  store_rows<kRows, kB>(sum, sums, stride);
}

template <int kB, int kSpan>
static void multiply_picked_tile(const char* rows, const Picks& picks, float* sums, int64_t stride) {
  constexpr int kRows = kTileRows / kB;
  multiply_picked_rows<kRows, kB, kSpan>(rows, picks, sums, stride);
  if constexpr (kB == 2) {
    multiply_picked_rows<kRows, kB, kSpan>(rows + kRows * 64, picks, sums + kRows * stride, stride);
  }
}

// sums[16][b_tiles · 16] += a tile of A, rows 64 bytes apart, by what is picked of spans of 4 or 8.
static void multiply_picked(Engine&, const char* rows, const Picks& picks, int span, int b_tiles, float* sums,
                            int64_t stride) {
  const auto multiply = span == 4 ? (b_tiles == 2 ? multiply_picked_tile<2, 4> : multiply_picked_tile<1, 4>)
                                  : (b_tiles == 2 ? multiply_picked_tile<2, 8> : multiply_picked_tile<1, 8>);
  multiply(rows, picks, sums, stride);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
