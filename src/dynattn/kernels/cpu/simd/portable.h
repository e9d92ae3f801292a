// GCC and Clang vector extensions: 4 lanes, which SSE2, NEON and their like all hold in a register.
#pragma once

namespace dynattn::DYNATTN_NAMESPACE {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
typedef uint32_t Unsigned __attribute__((vector_size(16)));
typedef uint64_t Halves __attribute__((vector_size(16)));
constexpr int kWidth = 4;
constexpr int kRegisters = 16;

DYNATTN_INLINE Vec broadcast(float x) { return Vec{x, x, x, x}; }
DYNATTN_INLINE Vec zero() { return broadcast(0.0f); }
DYNATTN_INLINE Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
DYNATTN_INLINE void store(float* p, Vec a) { *reinterpret_cast<Vec*>(p) = a; }

DYNATTN_INLINE Vec load_any(const float* p) {
  Vec a;
  memcpy(&a, p, sizeof a);
  return a;
}

DYNATTN_INLINE void store_any(float* p, Vec a) { memcpy(p, &a, sizeof a); }

// kWidth numbers of fewer bits as floats.
DYNATTN_INLINE Vec load_bfloat16(const uint16_t* p) {
  return reinterpret_cast<Vec>(Unsigned{p[0], p[1], p[2], p[3]} << 16);
}

DYNATTN_INLINE Vec load_int8(const int8_t* p) {
  return Vec{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}

// Four floats, and one of them in every lane: a broadcast that costs a shuffle, not a load.
DYNATTN_INLINE Vec load_four(const float* p) { return load(p); }

template <int kLane>
DYNATTN_INLINE Vec broadcast_lane(Vec four) {
  return broadcast(four[kLane]);
}

DYNATTN_INLINE Vec add(Vec a, Vec b) { return a + b; }
DYNATTN_INLINE Vec sub(Vec a, Vec b) { return a - b; }
DYNATTN_INLINE Vec mul(Vec a, Vec b) { return a * b; }
DYNATTN_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
DYNATTN_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
DYNATTN_INLINE Vec abs(Vec a) { return reinterpret_cast<Vec>(reinterpret_cast<Mask>(a) & 0x7fffffff); }
DYNATTN_INLINE Vec fmadd(Vec a, Vec b, Vec c) { return a * b + c; }
DYNATTN_INLINE Vec fmsub(Vec a, Vec b, Vec c) { return a * b - c; }

DYNATTN_INLINE Mask greater(Vec a, Vec b) { return a > b; }
DYNATTN_INLINE Mask either(Mask a, Mask b) { return a | b; }
DYNATTN_INLINE Mask both(Mask a, Mask b) { return a & b; }
DYNATTN_INLINE Vec select(Mask m, Vec yes, Vec no) { return m ? yes : no; }

DYNATTN_INLINE uint32_t bits(Mask m) {
  return static_cast<uint32_t>((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8));
}

DYNATTN_INLINE Mask mask_of(uint32_t bits) {
  const int32_t set = static_cast<int32_t>(bits);
  return (Mask{set, set, set, set} & Mask{1, 2, 4, 8}) != 0;
}

// The same for the bits from `kFirst` on.
template <int kFirst>
DYNATTN_INLINE Mask mask_at(uint32_t word) {
  return mask_of(word >> kFirst);
}

// The lanes of `a` whose bit is set, side by side from lane 0; the rest is of no meaning.
DYNATTN_INLINE Vec compress(uint32_t bits, Vec a) {
  Vec packed = zero();
  int count = 0;
  for (int lane = 0; lane < kWidth; lane++) {
    if (bits >> lane & 1) packed[count++] = a[lane];
  }
  return packed;
}

// Lanes as integers of 32 bits.
DYNATTN_INLINE Vec add_integers(Vec a, Vec b) {
  return reinterpret_cast<Vec>(reinterpret_cast<Mask>(a) + reinterpret_cast<Mask>(b));
}

DYNATTN_INLINE Vec broadcast_integer(int32_t x) { return reinterpret_cast<Vec>(Mask{x, x, x, x}); }

DYNATTN_INLINE Vec exclusive_or(Vec a, Vec b) {
  return reinterpret_cast<Vec>(reinterpret_cast<Mask>(a) ^ reinterpret_cast<Mask>(b));
}

DYNATTN_INLINE Mask reaches(Vec a, Vec limit) {  // a >= limit, without sign
  return reinterpret_cast<Unsigned>(a) >= reinterpret_cast<Unsigned>(limit);
}

// Lanes as halves of 64 bits: products of the low halves, the high halves moved to the low ones, and the low halves of
// two vectors, of which `even` gives the even lanes of 32 bits.
DYNATTN_INLINE Vec multiply_halves(Vec a, Vec b) {
  const Halves low = {0xffffffffu, 0xffffffffu};
  return reinterpret_cast<Vec>((reinterpret_cast<Halves>(a) & low) * (reinterpret_cast<Halves>(b) & low));
}

DYNATTN_INLINE Vec high_halves(Vec a) { return reinterpret_cast<Vec>(reinterpret_cast<Halves>(a) >> 32); }

DYNATTN_INLINE Vec join_halves(Vec even, Vec odd) {
  const Halves low = {0xffffffffu, 0xffffffffu};
  return reinterpret_cast<Vec>((reinterpret_cast<Halves>(even) & low) | (reinterpret_cast<Halves>(odd) << 32));
}

DYNATTN_INLINE Vec low_bits_to_exponent(Vec a) { return reinterpret_cast<Vec>(reinterpret_cast<Mask>(a) << 23); }

DYNATTN_INLINE float reduce_max(Vec a) {
  const float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
  return x > y ? x : y;
}

DYNATTN_INLINE float reduce_add(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }

DYNATTN_INLINE void transpose(Vec r[kWidth]) {
  const Vec a = r[0], b = r[1], c = r[2], d = r[3];
  for (int i = 0; i < 4; i++) r[i] = Vec{a[i], b[i], c[i], d[i]};
}

// Lane i: the sum of r[i].
DYNATTN_INLINE Vec sum_each(const Vec r[kWidth]) {
  Vec t[kWidth] = {r[0], r[1], r[2], r[3]};
  transpose(t);
  return add(add(t[0], t[1]), add(t[2], t[3]));
}

}  // namespace dynattn::DYNATTN_NAMESPACE
