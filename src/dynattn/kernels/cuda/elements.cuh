// Element types as memory and registers hold them.
//
// 16-bit elements lie two to a register. TF32 elements are float32 in memory, rounded to 10 bits of mantissa as they become
// operands; one fills a register. In bytes, the fragments of the dense product and the rows that ldmatrix reads are the
// same for both: tiles are therefore laid out in columns of two bytes, of which a TF32 element takes two. What differs is
// the sparse operand: it stores one of every two TF32 elements. So 64 keys are four products instead of two, with two words
// of metadata instead of one, and 2:4 has no sparse form.
#pragma once

#include "intrinsics.cuh"

namespace dynattn {

template <class Element>
struct Format {
  using Raw = unsigned short;
  static constexpr int HALVES = 1;  // columns of two bytes
  static constexpr int WORDS = 1;   // of metadata, for 64 keys
  static constexpr u32 SIGNS = 0x80008000u;

  static DYNATTN_DEVICE u32 operand(u32 bits) { return bits; }  // a register of memory as a product takes it
  static DYNATTN_DEVICE float value(Raw x) { return Element::value(x); }
  static DYNATTN_DEVICE Raw raw(float x) { return static_cast<Raw>(Element::pack(x, 0.0f)); }
  static DYNATTN_DEVICE void store(Raw* target, float first, float second) {
    *reinterpret_cast<u32*>(target) = Element::pack(first, second);
  }
};

template <>
struct Format<TensorFloat32> {
  using Raw = float;
  static constexpr int HALVES = 2;
  static constexpr int WORDS = 2;
  static constexpr u32 SIGNS = 0x80000000u;
  struct alignas(8) Pair {
    float first, second;
  };

  static DYNATTN_DEVICE u32 operand(u32 bits) { return TensorFloat32::round(float_of(bits)); }
  static DYNATTN_DEVICE float value(Raw x) { return float_of(TensorFloat32::round(x)); }
  static DYNATTN_DEVICE Raw raw(float x) { return x; }
  static DYNATTN_DEVICE void store(Raw* target, float first, float second) {
    *reinterpret_cast<Pair*>(target) = {first, second};
  }
};

}  // namespace dynattn
