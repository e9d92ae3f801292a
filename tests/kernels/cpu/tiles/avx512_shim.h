// The intrinsics of AVX-512 that the tile kernels use, in C++, so that what is written in them runs on every processor.
// Each does what Intel's Intrinsics Guide says of it; those that the tile kernels only include are declared, and end
// the program.
#pragma once

#define _IMMINTRIN_H_INCLUDED  // in place of the compiler's own header

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

typedef float __m512 __attribute__((vector_size(64)));
typedef double __m512d __attribute__((vector_size(64)));
typedef long long __m512i __attribute__((vector_size(64)));
typedef short __m512bh __attribute__((vector_size(64)));
typedef float __m128 __attribute__((vector_size(16)));
typedef long long __m256i __attribute__((vector_size(32)));
typedef long long __m128i __attribute__((vector_size(16)));
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;

#define _CMP_GT_OQ 30
#define _CMP_UNORD_Q 3
#define _MM_FROUND_TO_NEAREST_INT 0
#define _MM_FROUND_TO_NEG_INF 1

namespace avx512_shim {

[[noreturn]] inline void refuse(const char* why) {
  std::fprintf(stderr, "avx512_shim: %s\n", why);
  std::abort();
}

template <class To, class From>
inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a vector has one size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(64)));
typedef uint64_t Pairs __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(64)));

template <class Make>
inline __m512 floats(Make make) {
  __m512 to;
  for (int i = 0; i < 16; i++) to[i] = make(i);
  return to;
}

template <class Make>
inline __m512i words(Make make) {
  Words to;
  for (int i = 0; i < 16; i++) to[i] = make(i);
  return as<__m512i>(to);
}

template <class Test>
inline __mmask16 mask(Test test) {
  unsigned to = 0;
  for (int i = 0; i < 16; i++) to |= static_cast<unsigned>(test(i)) << i;
  return static_cast<__mmask16>(to);
}

template <class To>
inline To load(const void* p) {
  To to;
  std::memcpy(&to, p, sizeof to);
  return to;
}

inline void aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 64 != 0) refuse("an aligned load or store is not aligned");
}

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

inline float widened(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  return flushed(load<float>(&bits));
}

inline float multiply_add(float a, float b, float c) {
  const float rounded = std::fma(a, b, c);
  const bool tiny = std::fabs(static_cast<long double>(a) * b + c) < 0x1p-126L * (1 - 0x1p-25L);
  return tiny ? std::copysign(0.0f, rounded) : rounded;
}

}  // namespace avx512_shim

#define SHIM static inline

SHIM __m512 _mm512_setzero_ps() { return __m512{}; }
SHIM __m512 _mm512_set1_ps(float x) {
  return avx512_shim::floats([=](int) { return x; });
}
SHIM __m512i _mm512_set1_epi32(int x) {
  return avx512_shim::words([=](int) { return static_cast<uint32_t>(x); });
}
template <class... Int>
SHIM __m512i _mm512_setr_epi32(Int... x) {
  const int all[16] = {x...};
  return avx512_shim::load<__m512i>(all);
}

// Lanes as bits, and as eight halves of 64 bits.
SHIM __m512 _mm512_xor_ps(__m512 a, __m512 b) {
  return avx512_shim::as<__m512>(avx512_shim::as<__m512i>(a) ^ avx512_shim::as<__m512i>(b));
}
SHIM __mmask16 _mm512_cmpge_epu32_mask(__m512i a, __m512i b) {
  const auto x = avx512_shim::as<avx512_shim::Words>(a), y = avx512_shim::as<avx512_shim::Words>(b);
  return avx512_shim::mask([=](int i) { return x[i] >= y[i]; });
}
SHIM __m512i _mm512_mul_epu32(__m512i a, __m512i b) {
  const auto x = avx512_shim::as<avx512_shim::Pairs>(a), y = avx512_shim::as<avx512_shim::Pairs>(b);
  return avx512_shim::as<__m512i>((x & 0xFFFFFFFFu) * (y & 0xFFFFFFFFu));
}
SHIM __m512i _mm512_srli_epi64(__m512i a, unsigned bits) {
  return avx512_shim::as<__m512i>(avx512_shim::as<avx512_shim::Pairs>(a) >> bits);
}
SHIM __m512i _mm512_slli_epi64(__m512i a, unsigned bits) {
  return avx512_shim::as<__m512i>(avx512_shim::as<avx512_shim::Pairs>(a) << bits);
}

SHIM __m512 _mm512_loadu_ps(const void* p) { return avx512_shim::load<__m512>(p); }
SHIM __m512i _mm512_loadu_si512(const void* p) { return avx512_shim::load<__m512i>(p); }
SHIM void _mm512_storeu_ps(void* p, __m512 a) { std::memcpy(p, &a, 64); }
SHIM void _mm512_storeu_si512(void* p, __m512i a) { std::memcpy(p, &a, 64); }
SHIM __m512 _mm512_load_ps(const void* p) {
  avx512_shim::aligned(p);
  return avx512_shim::load<__m512>(p);
}
SHIM void _mm512_store_ps(void* p, __m512 a) {
  avx512_shim::aligned(p);
  std::memcpy(p, &a, 64);
}
SHIM void _mm512_mask_cvtepi32_storeu_epi16(void* p, __mmask16 m, __m512i a) {
  const auto x = avx512_shim::as<avx512_shim::Words>(a);
  for (int i = 0; i < 16; i++) {
    const uint16_t half = static_cast<uint16_t>(x[i]);
    if (m >> i & 1) std::memcpy(static_cast<char*>(p) + 2 * i, &half, 2);
  }
}
SHIM void _mm512_mask_storeu_ps(void* p, __mmask16 m, __m512 a) {
  for (int i = 0; i < 16; i++) {
    const float x = a[i];
    if (m >> i & 1) std::memcpy(static_cast<char*>(p) + 4 * i, &x, 4);
  }
}
SHIM __m512i _mm512_maskz_loadu_epi16(__mmask32 m, const void* p) {
  avx512_shim::Halves to = {};
  for (int i = 0; i < 32; i++) {
    if (m >> i & 1) to[i] = avx512_shim::load<uint16_t>(static_cast<const char*>(p) + 2 * i);
  }
  return avx512_shim::as<__m512i>(to);
}

SHIM __m128i _mm_loadu_si128(const void* p) { return avx512_shim::load<__m128i>(p); }
SHIM __m512i _mm512_broadcast_i32x4(__m128i a) { return __m512i{a[0], a[1], a[0], a[1], a[0], a[1], a[0], a[1]}; }
SHIM __m512i _mm512_set1_epi64(long long x) { return __m512i{x, x, x, x, x, x, x, x}; }

SHIM __m512 _mm512_castsi512_ps(__m512i a) { return avx512_shim::as<__m512>(a); }
SHIM __m512i _mm512_castps_si512(__m512 a) { return avx512_shim::as<__m512i>(a); }
SHIM __m512d _mm512_castps_pd(__m512 a) { return avx512_shim::as<__m512d>(a); }
SHIM __m512 _mm512_castpd_ps(__m512d a) { return avx512_shim::as<__m512>(a); }

SHIM __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
SHIM __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
SHIM __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
SHIM __m512 _mm512_max_ps(__m512 a, __m512 b) {
  return avx512_shim::floats([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
SHIM __m512 _mm512_min_ps(__m512 a, __m512 b) {
  return avx512_shim::floats([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
SHIM __m512 _mm512_abs_ps(__m512 a) {
  return avx512_shim::floats([&](int i) { return std::fabs(a[i]); });
}
SHIM __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return avx512_shim::floats([&](int i) { return std::fma(a[i], b[i], c[i]); });
}
SHIM __m512 _mm512_fmsub_ps(__m512 a, __m512 b, __m512 c) {
  return avx512_shim::floats([&](int i) { return std::fma(a[i], b[i], -c[i]); });
}
// x - round(x), where the bits 4 … 7 of the argument keep none of the fraction; infinity gives 0.
SHIM __m512 _mm512_reduce_ps(__m512 a, int how) {
  if (how != _MM_FROUND_TO_NEG_INF) avx512_shim::refuse("this rounding is not emulated");
  return avx512_shim::floats([&](int i) { return std::isinf(a[i]) ? 0.0f : a[i] - std::floor(a[i]); });
}
SHIM __m512 _mm512_roundscale_ps(__m512 a, int how) {
  if (how != _MM_FROUND_TO_NEAREST_INT) avx512_shim::refuse("this rounding is not emulated");
  return avx512_shim::floats([&](int i) { return std::nearbyint(a[i]); });
}
SHIM __m512i _mm512_cvtps_epi32(__m512 a) {
  return avx512_shim::words([&](int i) {
    const float x = std::nearbyint(a[i]);
    return x >= -0x1p31f && x < 0x1p31f ? static_cast<uint32_t>(static_cast<int32_t>(x)) : 0x80000000u;
  });
}
SHIM __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
  const auto x = avx512_shim::as<avx512_shim::Halves>(a), y = avx512_shim::as<avx512_shim::Halves>(b);
  return avx512_shim::floats([&](int i) {
    float sum = avx512_shim::flushed(sums[i]);
    for (int number : {2 * i + 1, 2 * i}) {
      sum = avx512_shim::multiply_add(avx512_shim::widened(x[number]), avx512_shim::widened(y[number]), sum);
    }
    return sum;
  });
}

SHIM __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
  if (how == _CMP_GT_OQ) return avx512_shim::mask([&](int i) { return a[i] > b[i]; });
  if (how != _CMP_UNORD_Q) avx512_shim::refuse("this comparison is not emulated");
  return avx512_shim::mask([&](int i) { return std::isnan(a[i]) || std::isnan(b[i]); });
}
SHIM __m512 _mm512_mask_blend_ps(__mmask16 m, __m512 no, __m512 yes) {
  return avx512_shim::floats([&](int i) { return m >> i & 1 ? yes[i] : no[i]; });
}

// Neighbours from two vectors, within each quarter: of its four floats, and of its two halves of 64 bits.
SHIM __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
  return avx512_shim::floats([&](int i) { return (i % 2 ? b : a)[i / 4 * 4 + i % 4 / 2]; });
}
SHIM __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
  return avx512_shim::floats([&](int i) { return (i % 2 ? b : a)[i / 4 * 4 + 2 + i % 4 / 2]; });
}
SHIM __m512d _mm512_unpacklo_pd(__m512d a, __m512d b) {
  return __m512d{a[0], b[0], a[2], b[2], a[4], b[4], a[6], b[6]};
}
SHIM __m512d _mm512_unpackhi_pd(__m512d a, __m512d b) {
  return __m512d{a[1], b[1], a[3], b[3], a[5], b[5], a[7], b[7]};
}
// Quarters: two of the first vector, then two of the second, two bits of `which` for each.
SHIM __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int which) {
  return avx512_shim::floats([&](int i) { return (i < 8 ? a : b)[(which >> i / 4 * 2 & 3) * 4 + i % 4]; });
}

#define SHIM_WORDS(name, expression)                                                                      \
  SHIM __m512i name(__m512i first, __m512i second) {                                                      \
    const auto a = avx512_shim::as<avx512_shim::Words>(first), b = avx512_shim::as<avx512_shim::Words>(second); \
    return avx512_shim::as<__m512i>(expression);                                                          \
  }
SHIM_WORDS(_mm512_add_epi32, a + b)
SHIM_WORDS(_mm512_and_si512, a& b)
SHIM_WORDS(_mm512_or_si512, a | b)
SHIM_WORDS(_mm512_xor_si512, a ^ b)
#undef SHIM_WORDS

SHIM __m512i _mm512_slli_epi32(__m512i a, unsigned bits) {
  return avx512_shim::as<__m512i>(avx512_shim::as<avx512_shim::Words>(a) << bits);
}
SHIM __m512i _mm512_srli_epi32(__m512i a, unsigned bits) {
  return avx512_shim::as<__m512i>(avx512_shim::as<avx512_shim::Words>(a) >> bits);
}
SHIM __m512i _mm512_mask_blend_epi32(__mmask16 m, __m512i no, __m512i yes) {
  return _mm512_castps_si512(_mm512_mask_blend_ps(m, _mm512_castsi512_ps(no), _mm512_castsi512_ps(yes)));
}
SHIM __m512i _mm512_maskz_mov_epi32(__mmask16 m, __m512i a) { return _mm512_mask_blend_epi32(m, __m512i{}, a); }
SHIM __m512i _mm512_mask_slli_epi32(__m512i from, __mmask16 m, __m512i a, unsigned bits) {
  return _mm512_mask_blend_epi32(m, from, _mm512_slli_epi32(a, bits));
}
SHIM __m512i _mm512_mask_or_epi32(__m512i from, __mmask16 m, __m512i a, __m512i b) {
  return _mm512_mask_blend_epi32(m, from, _mm512_or_si512(a, b));
}
// Bytes of the first vector, within each quarter: the low four bits of the second's bytes say which.
SHIM __m512i _mm512_shuffle_epi8(__m512i a, __m512i places) {
  const auto bytes = avx512_shim::as<avx512_shim::Bytes>(a), at = avx512_shim::as<avx512_shim::Bytes>(places);
  avx512_shim::Bytes to = {};
  for (int i = 0; i < 64; i++) to[i] = at[i] & 0x80u ? uint8_t{0} : bytes[i / 16 * 16 + (at[i] & 15)];
  return avx512_shim::as<__m512i>(to);
}
SHIM __mmask16 _mm512_test_epi32_mask(__m512i a, __m512i b) {
  const auto both = avx512_shim::as<avx512_shim::Words>(_mm512_and_si512(a, b));
  return avx512_shim::mask([&](int i) { return both[i] != 0; });
}
SHIM __m512i _mm512_max_epu16(__m512i first, __m512i second) {
  const auto a = avx512_shim::as<avx512_shim::Halves>(first), b = avx512_shim::as<avx512_shim::Halves>(second);
  return avx512_shim::as<__m512i>(a > b ? a : b);
}

#define SHIM_ABSENT(type, name)                     \
  template <class... Any>                           \
  SHIM type name(Any...) {                          \
    avx512_shim::refuse(#name " is not emulated");  \
  }
SHIM_ABSENT(__m512, _mm512_broadcast_f32x4)
SHIM_ABSENT(__m512, _mm512_permute_ps)
SHIM_ABSENT(__m512, _mm512_maskz_compress_ps)
SHIM_ABSENT(float, _mm512_reduce_max_ps)
SHIM_ABSENT(float, _mm512_reduce_add_ps)
SHIM_ABSENT(__m128, _mm_load_ps)
SHIM_ABSENT(__m256i, _mm256_loadu_si256)
SHIM_ABSENT(__m512i, _mm512_cvtepu16_epi32)
SHIM_ABSENT(__m512i, _mm512_cvtepi8_epi32)
SHIM_ABSENT(__m512, _mm512_cvtepi32_ps)

#undef SHIM_ABSENT
#undef SHIM
