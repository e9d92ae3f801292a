// Which inputs a token keeps, a bit each: what a mask says, what is above thresholds, or N of every M in a row.
#pragma once

#include "linear/call.h"

namespace dynattn::DYNATTN_NAMESPACE {

constexpr int64_t kWordInputs = 64;  // a bit each in a word
constexpr int64_t kLongestBlock = 256;

// The words of a token's inputs. Those behind the last input are 0.
constexpr int64_t kept_words(int64_t inputs) { return (inputs + kLongestBlock - 1) / kLongestBlock * (kLongestBlock / kWordInputs); }

DYNATTN_INLINE void set_bits(uint64_t* words, int64_t first, uint32_t some) {
  words[first / kWordInputs] |= uint64_t{some} << (first % kWordInputs);
}

// A NaN is kept, whatever its score: it must reach the output.
DYNATTN_INLINE Mask is_nan(Vec size) { return reaches(size, broadcast_integer(0x7f800001)); }

// `count` inputs of a token from `first` on as float32, 0 behind the last one: in place, or written to `some`.
DYNATTN_INLINE const float* inputs_from(const LinearArgs& args, int64_t token, int64_t first, int64_t count, float* some) {
  const int64_t left = smaller(count, args.inputs - first), at = token * args.inputs + first;
  if (args.dtype == DYNATTN_FLOAT32 && left == count) return static_cast<const float*>(args.x) + at;
  to_floats(some, element(args.x, at, args.dtype), args.dtype, left);
  for (int64_t i = left; i < count; i++) some[i] = 0.0f;
  return some;
}

// Likewise of one number for each input.
DYNATTN_INLINE const float* numbers_from(const LinearArgs& args, const float* numbers, int64_t first, int64_t count,
                                         float* some) {
  const int64_t left = smaller(count, args.inputs - first);
  if (left == count) return numbers + first;
  for (int64_t i = 0; i < count; i++) some[i] = i < left ? numbers[first + i] : 0.0f;
  return some;
}

// Eight truth values, a byte each that is 0 or not, as bits: a product moves each byte's highest bit to its place.
DYNATTN_INLINE uint32_t bits_of_bytes(const uint8_t* keep) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7fu;
  uint64_t bytes;
  memcpy(&bytes, keep, sizeof bytes);
  bytes = (((bytes & kLow) + kLow) | bytes) & ~kLow;
  return static_cast<uint32_t>(bytes * 0x0002040810204081u >> 56);
}

static void keep_by_mask(const LinearArgs& args, int64_t token, uint64_t* words) {
  const uint8_t* const keep = args.keep + token * args.inputs;
  int64_t i = 0;
  for (; i + 8 <= args.inputs; i += 8) set_bits(words, i, bits_of_bytes(keep + i));
  for (; i < args.inputs; i++) set_bits(words, i, keep[i] != 0);
}

// |x| > threshold.
static void keep_above(const LinearArgs& args, int64_t token, uint64_t* words) {
  float some[kWordInputs], own[kWordInputs];
  const bool each = args.threshold_stride == 1;
  for (int64_t word = 0; word * kWordInputs < args.inputs; word++) {
    const int64_t first = word * kWordInputs;
    const float* const x = inputs_from(args, token, first, kWordInputs, some);
    const float* const least = each ? numbers_from(args, args.thresholds, first, kWordInputs, own) : nullptr;
    for (int i = 0; i < kWordInputs; i += kWidth) {
      const Vec size = abs(load_any(x + i));
      const Mask above = greater(size, each ? load_any(least + i) : broadcast(args.thresholds[0]));
      words[word] |= uint64_t{bits(either(above, is_nan(size)))} << i;
    }
  }
}

// Of each group, whose members stand in vectors and groups in lanes, 1 for the n largest and 0 for the others; ties go to
// the first. A member's rank is the number of those that beat it: at first all before it, less those that it beats.
template <int kM>
DYNATTN_INLINE void choose_members(Vec member[kM], Vec n) {
  const Vec one = broadcast(1.0f);
  Vec rank[kM];
#pragma GCC unroll 16
  for (int i = 0; i < kM; i++) rank[i] = broadcast(static_cast<float>(i));
#pragma GCC unroll 16
  for (int j = 1; j < kM; j++) {
#pragma GCC unroll 16
    for (int i = 0; i < j; i++) {
      const Vec later = select(greater(member[j], member[i]), one, zero());
      rank[i] = add(rank[i], later), rank[j] = sub(rank[j], later);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kM; i++) member[i] = select(greater(n, rank[i]), one, zero());
}

// Lane j of vector i becomes lane i of vector j, of kWidth vectors at a time.
template <int kRun>
DYNATTN_INLINE void turn(Vec r[kRun]) {
#pragma GCC unroll 4
  for (int part = 0; part < kRun; part += kWidth) transpose(r + part);
}

// A block of groups of kM inputs: each lane takes a run of kRun inputs, whole groups, and the block fills whole words.
template <int kM>
struct Block {
  static constexpr int kLeast = kM > kWidth ? kM : kWidth, kFull = static_cast<int>(kWordInputs) / kWidth;
  static constexpr int kRun = kLeast > kFull ? kLeast : kFull, kInputs = kRun * kWidth;
  static constexpr int kWords = kInputs / static_cast<int>(kWordInputs);
  static_assert(kLongestBlock % kInputs == 0, "words would not hold a block");

  // The first input of vector i: a vector for each lane before the transposition, and again after the second one.
  static constexpr int at(int i) { return i % kWidth * kRun + i / kWidth * kWidth; }
};

// Adds the bits of those of a block's inputs that are among the n largest |x| · factor of their group, or NaN.
template <int kM, bool kWeighed>
static void choose_of_block(const float* x, const float* factors, Vec n, uint64_t* words) {
  using B = Block<kM>;
  Vec member[B::kRun];
  Mask nan = greater(zero(), zero());
#pragma GCC unroll 16
  for (int i = 0; i < B::kRun; i++) {
    Vec score = abs(load_any(x + B::at(i)));
    if (kWeighed) score = mul(score, load_any(factors + B::at(i)));
    nan = either(nan, is_nan(score));
    member[i] = min(score, broadcast(INFINITY));  // of NaN infinity: it is among the largest
  }
  turn<B::kRun>(member);
#pragma GCC unroll 16
  for (int group = 0; group < B::kRun; group += kM) choose_members<kM>(member + group, n);
  turn<B::kRun>(member);
  uint64_t found[B::kWords] = {};
#pragma GCC unroll 16
  for (int i = 0; i < B::kRun; i++) {
    found[B::at(i) / kWordInputs] |= uint64_t{bits(greater(member[i], zero()))} << B::at(i) % kWordInputs;
  }
  for (int word = 0; word < B::kWords; word++) words[word] |= found[word];
  if (bits(nan) == 0) return;
  for (int i = 0; i < B::kInputs; i += kWidth) {
    const Vec size = abs(load_any(x + i));
    set_bits(words, i, bits(is_nan(kWeighed ? mul(size, load_any(factors + i)) : size)));
  }
}

template <int kM>
static void keep_of_groups(const LinearArgs& args, int64_t token, uint64_t* words) {
  constexpr int64_t kInputs = Block<kM>::kInputs;
  float some[kInputs], own[kInputs];
  const Vec n = broadcast(static_cast<float>(args.n));
  for (int64_t first = 0; first < args.inputs; first += kInputs, words += Block<kM>::kWords) {
    const float* const x = inputs_from(args, token, first, kInputs, some);
    if (args.factors == nullptr) {
      choose_of_block<kM, false>(x, nullptr, n, words);
    } else {
      choose_of_block<kM, true>(x, numbers_from(args, args.factors, first, kInputs, own), n, words);
    }
  }
}

// The bits of the inputs that a token keeps.
static void find_kept(const LinearArgs& args, int64_t token, uint64_t* words) {
  const int64_t count = kept_words(args.inputs);
  memset(words, 0, static_cast<size_t>(count) * sizeof words[0]);
  if (args.keep != nullptr) {
    keep_by_mask(args, token, words);
  } else if (args.thresholds != nullptr) {
    keep_above(args, token, words);
  } else if (args.m == 2) {
    keep_of_groups<2>(args, token, words);
  } else if (args.m == 4) {
    keep_of_groups<4>(args, token, words);
  } else if (args.m == 8) {
    keep_of_groups<8>(args, token, words);
  } else {
    keep_of_groups<16>(args, token, words);
  }
  for (int64_t word = args.inputs / kWordInputs; word < count; word++) {  // what is not there
    const int64_t left = larger<int64_t>(args.inputs - word * kWordInputs, 0);
    words[word] &= left < kWordInputs ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
