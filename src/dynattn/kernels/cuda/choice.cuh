// The choice of the N largest scores of every M keys, in registers, and the metadata of the sparse product.
//
// A warp holds the scores of 16 queries against 64 keys, 32 a thread. Lane 4g + t (g < 8, t < 4) holds, in
// Scores[half][chunk][2 * row + i], the score of query g + 8 * row with key
//
//     16 * chunk + 4 * t + 2 * half + i          (half, row, i in {0, 1}, chunk < 4)
//
// so that a thread owns whole groups of four consecutive keys. That is not where the product Q Kᵀ puts keys by itself:
// the kernels permute the rows of K as they read them. Then the choice needs no exchange between threads, and the
// survivors are, in the same lane, the compressed operand of the sparse product: no data moves. Only the metadata, one
// word a thread, is exchanged within the four lanes of a quad.
//
// Where the members of a group stand STRIDE keys apart, read "position" for "key" here: tiles hold K and V by position,
// and key_at() says which key stands at one. Nothing but masks, window and sinks asks which key it is.
#pragma once

#include "elements.cuh"

namespace dynattn {

enum class Pattern { one_of_two, two_of_four };

constexpr float INFINITY_F = __builtin_bit_cast(float, 0x7f800000u);  // NVRTC has no __builtin_huge_valf
constexpr int UNIT_KEYS = 64;  // keys whose metadata fills one register of every lane

// The key at a position of a tile, both counted from the tile's first. Four positions in a row, 4q to 4q + 3, hold keys
// STRIDE apart, which are one group of 2:4, or two of 1:2. STRIDE is a power of two, so that bits of a position only change
// places: key_at(a + b) = key_at(a) + key_at(b) where a and b have no bit in common.
template <int STRIDE>
DYNATTN_DEVICE constexpr int key_at(int position) {
  static_assert(STRIDE > 0 && (STRIDE & (STRIDE - 1)) == 0 && UNIT_KEYS % (4 * STRIDE) == 0);
  return position / (4 * STRIDE) * (4 * STRIDE) + position % (4 * STRIDE) / 4 + position % 4 * STRIDE;
}

using Scores = float[2][4][4];     // [half][chunk][2 * row + i]
using Survivors = float[4][2][2];  // [chunk][row][first, second of a group of four], by rising key

// The part of the exchange within a quad that depends on the lane alone.
struct QuadLane {
  u32 byte_selector, nibble_mask;
  int rotation;
};

DYNATTN_DEVICE QuadLane quad_lane(int lane) {
  const int t = lane & 3;
  return {t < 2 ? 0x6240u : 0x3715u, t & 1 ? 0xF0F0F0F0u : 0x0F0F0F0Fu, t & 1 ? 28 : 4};
}

// Metadata before the last step of its exchange. The step is split off because the operand registers of an asynchronous
// product must not be written while an earlier product that reads them is in flight; everything up to here may be.
struct HalfMetadata {
  u32 own, other;
};

// The 4 x 4 transpose of nibbles within a quad, in each half word at once. Thread t holds nibble c of chunk c, row g in
// the lower half word and row g + 8 in the upper; it ends with the nibbles of chunk t, in the order of the keys: the
// metadata word that the product of chunks (0, 1) reads from lanes t = 0, 1 and that of chunks (2, 3) from t = 2, 3.
DYNATTN_DEVICE HalfMetadata exchange(u32 nibbles, QuadLane lane) {
  const u32 bytes = permute_bytes(nibbles, shuffle_xor(nibbles, 2), lane.byte_selector);
  const u32 other = shuffle_xor(bytes, 1);
  return {bytes, funnel_shift_left(other, other, lane.rotation)};
}
DYNATTN_DEVICE u32 finish(HalfMetadata m, QuadLane lane) {
  return (m.own & lane.nibble_mask) | (m.other & ~lane.nibble_mask);
}

// A metadata nibble is first | second << 2, positions in a group of four. 1:2 is written as 2:4 whose survivors are one
// of {0, 1} and one of {2, 3}.
constexpr u32 ONE_OF_TWO_BASE = 0x88888888u;  // first in {0, 1}: bit 0; second in {2, 3}: bit 2
constexpr u32 LOWER_PAIRS = 0x44444444u;      // first = 0, second = 1 in every group
constexpr u32 UPPER_PAIRS = 0xEEEEEEEEu;      // first = 2, second = 3
constexpr u32 FIRST_OF_PAIRS = 0x88888888u;   // first = 0, second = 2
constexpr u32 SECOND_OF_PAIRS = 0xDDDDDDDDu;  // first = 1, second = 3

// The key, counted from the tile's first, of the first or second survivor of a group of four.
template <int STRIDE>
DYNATTN_DEVICE int survivor_key(u32 nibbles, int chunk, int row, int second, int lane) {
  const int member = static_cast<int>((nibbles >> (4 * chunk + 16 * row + 2 * second)) & 3);
  return key_at<STRIDE>(16 * chunk) + key_at<STRIDE>(4 * (lane & 3)) + member * STRIDE;
}

// One of every two: 1 instruction for the survivor, 2 for its bit. The bit is the sign of x0 - x1: set where the second
// is larger, clear at ties. NaN becomes the survivor, and makes its whole row NaN whatever its bit says.
DYNATTN_DEVICE u32 choose_one_of_two(const Scores& s, Survivors& kept) {
  u32 word = 0;
#pragma unroll
  for (int row = 1; row >= 0; --row) {
#pragma unroll
    for (int chunk = 3; chunk >= 0; --chunk) {
#pragma unroll
      for (int half = 1; half >= 0; --half) {
        const float x0 = s[half][chunk][2 * row], x1 = s[half][chunk][2 * row + 1];
        const bool last = row == 0 && chunk == 0 && half == 0;
        kept[chunk][row][half] = maximum_or_nan(x0, x1);
        word = funnel_shift_left(bits_of(difference(x0, x1)), word, last ? 1 : 2);  // signs end on even bits
      }
    }
  }
  return (word & 0x55555555u) | ONE_OF_TWO_BASE;
}

// Two of every four {a, b, x, y}, from the sorted pairs (A >= a') of {a, b} and (X >= x') of {x, y}:
//     a' >= X: both of the first pair;   x' > A: both of the second;   else the larger of each.
// Ties go to the lower index throughout. NaN takes both places of its pair, hence is kept, and every metadata nibble stays
// a legal one (first < second). Four sign words, a nibble a group, hold the comparisons.
DYNATTN_DEVICE u32 choose_two_of_four(const Scores& s, Survivors& kept) {
  u32 second_of_first = 0, second_of_second = 0, not_first_pair = 0, second_pair = 0;
#pragma unroll
  for (int row = 1; row >= 0; --row) {
#pragma unroll
    for (int chunk = 3; chunk >= 0; --chunk) {
      const float a = s[0][chunk][2 * row], b = s[0][chunk][2 * row + 1];
      const float x = s[1][chunk][2 * row], y = s[1][chunk][2 * row + 1];
      const float upper_ab = maximum_or_nan(a, b), lower_ab = minimum_or_nan(a, b);
      const float upper_xy = maximum_or_nan(x, y), lower_xy = minimum_or_nan(x, y);
      second_of_first = funnel_shift_left(bits_of(difference(a, b)), second_of_first, 4);
      second_of_second = funnel_shift_left(bits_of(difference(x, y)), second_of_second, 4);
      not_first_pair = funnel_shift_left(bits_of(difference(lower_ab, upper_xy)), not_first_pair, 4);
      second_pair = funnel_shift_left(bits_of(difference(upper_ab, lower_xy)), second_pair, 4);
      const bool both_ab = lower_ab >= upper_xy, both_xy = lower_xy > upper_ab;
      kept[chunk][row][0] = both_xy ? x : (both_ab ? a : upper_ab);
      kept[chunk][row][1] = both_ab ? b : (both_xy ? y : upper_xy);
    }
  }
  // The sign of a group stands at bit 3 of its nibble; bits 3 to 0 of the metadata are these four, moved down.
  const u32 bit0 = second_of_first & not_first_pair & ~second_pair;
  const u32 bit2 = ~not_first_pair | second_pair | second_of_second;
  return (not_first_pair & 0x88888888u) | ((bit2 >> 1) & 0x44444444u) | ((second_pair >> 2) & 0x22222222u) |
         ((bit0 >> 3) & 0x11111111u);
}

// The survivors, and the nibbles of this thread's own groups; that of chunk c and row r begins at bit 4 c + 16 r.
template <Pattern PATTERN>
DYNATTN_DEVICE u32 choose(const Scores& s, Survivors& kept) {
  if constexpr (PATTERN == Pattern::one_of_two) {
    return choose_one_of_two(s, kept);
  } else {
    return choose_two_of_four(s, kept);
  }
}

// Word `half` of a unit's metadata, before the exchange. 16-bit elements have one word, the nibbles themselves. With
// TF32, which stores one of every two, each half of a chunk has its own: there the first of a pair is 0x4, the second
// 0xE.
template <int WORDS>
DYNATTN_DEVICE u32 metadata_word(u32 nibbles, int half) {
  return WORDS == 1 ? nibbles : LOWER_PAIRS | (nibbles >> 2 * half & 0x11111111u) * 10u;
}

// The scores that choose() drops, in any order. It drops as many as it keeps.
template <Pattern PATTERN>
DYNATTN_DEVICE void dropped_scores(const Scores& s, Survivors& dropped) {
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float a = s[0][chunk][2 * row], b = s[0][chunk][2 * row + 1];
      const float x = s[1][chunk][2 * row], y = s[1][chunk][2 * row + 1];
      if constexpr (PATTERN == Pattern::one_of_two) {
        dropped[chunk][row][0] = minimum(a, b);
        dropped[chunk][row][1] = minimum(x, y);
      } else {
        dropped[chunk][row][0] = minimum(maximum(a, b), minimum(x, y));
        dropped[chunk][row][1] = minimum(maximum(x, y), minimum(a, b));
      }
    }
  }
}

// The same choice as flags, for tiles that a window or sinks widen: keep[i] of four consecutive keys. NaN is kept.
template <Pattern PATTERN>
DYNATTN_DEVICE void choice_flags(const float (&s)[4], bool (&keep)[4]) {
  constexpr int M = PATTERN == Pattern::one_of_two ? 2 : 4, N = M / 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int larger = 0;
#pragma unroll
    for (int j = i / M * M; j < i / M * M + M; ++j) larger += s[j] > s[i] || (s[j] == s[i] && j < i);
    keep[i] = larger < N || s[i] != s[i];
  }
}

// Survivors, exponentiated, as the four operand registers of the sparse product of chunks (2 * step, 2 * step + 1).
template <class Element>
DYNATTN_DEVICE void pack_operand(const Survivors& weights, int step, u32 (&a)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float(&pair)[2] = weights[2 * step + (j >> 1)][j & 1];
    a[j] = Element::pack(pair[0], pair[1]);
  }
}

}  // namespace dynattn
