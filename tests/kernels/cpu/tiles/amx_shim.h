// AMX's instructions in C++, so that the engine written in intrinsics runs on every processor: what Intel's Software
// Developer's Manual says of LDTILECFG, STTILECFG, TILERELEASE, TILELOADD, TILESTORED, TILEZERO and TDPBF16PS. A use
// that the processor would answer with an exception ends the program with a message.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_shim {

struct Configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

struct Processor {
  Configuration configuration = {};
  unsigned char tiles[8][16][64] = {};
};

inline thread_local Processor processor;
inline uint64_t products = 0;  // TDPBF16PS run so far, for a test that must know that the engine was here

[[noreturn]] inline void refuse(const char* why) {
  std::fprintf(stderr, "amx_shim: %s\n", why);
  std::abort();
}

inline void load_configuration(const void* from) {
  Configuration next;
  std::memcpy(&next, from, sizeof next);
  if (next.palette > 1) refuse("palette must be 0 or 1");
  for (unsigned char byte : next.reserved) {
    if (byte != 0) refuse("reserved bytes must be 0");
  }
  for (int tile = 0; tile < 16 && next.palette == 1; tile++) {
    const bool used = next.row_bytes[tile] != 0 || next.rows[tile] != 0;
    if (used && (tile >= 8 || next.row_bytes[tile] > 64 || next.rows[tile] > 16)) refuse("a tile is too large");
    if (used && (next.row_bytes[tile] == 0 || next.rows[tile] == 0)) refuse("a tile has rows or columns, and not both");
  }
  processor = {};
  if (next.palette == 1) processor.configuration = next;
}

inline void store_configuration(void* to) { std::memcpy(to, &processor.configuration, sizeof(Configuration)); }

inline int rows_of(int tile) {
  if (processor.configuration.palette != 1) refuse("tiles are used before they are configured");
  if (processor.configuration.rows[tile] == 0) refuse("this tile is not configured");
  return processor.configuration.rows[tile];
}

inline size_t row_bytes_of(int tile) { return processor.configuration.row_bytes[tile]; }

inline void zero(int tile) {
  rows_of(tile);
  std::memset(processor.tiles[tile], 0, sizeof processor.tiles[tile]);
}

inline void load(int tile, const void* base, long stride) {
  const int rows = rows_of(tile);
  std::memset(processor.tiles[tile], 0, sizeof processor.tiles[tile]);
  for (int row = 0; row < rows; row++) {
    std::memcpy(processor.tiles[tile][row], static_cast<const char*>(base) + row * stride, row_bytes_of(tile));
  }
}

inline void store(int tile, void* base, long stride) {
  const int rows = rows_of(tile);
  for (int row = 0; row < rows; row++) {
    std::memcpy(static_cast<char*>(base) + row * stride, processor.tiles[tile][row], row_bytes_of(tile));
  }
}

// Inputs below 2^-126 count as 0.
inline float make_float(const unsigned char* row, int index) {
  uint16_t half;
  std::memcpy(&half, row + 2 * index, 2);
  const uint32_t bits = uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

// A result below 2^-126 becomes 0. Whether it is below is decided as if exponents had no end, so that one which only
// the coarser steps below 2^-126 round up to it does as well: the exact result tells, from a wider format.
inline float flush(float rounded, long double exact) {
  const long double least = 0x1p-126L * (1 - 0x1p-25L);
  return std::fabs(exact) < least ? std::copysign(0.0f, rounded) : rounded;
}

inline float multiply_add(float a, float b, float c) {
  return flush(std::fma(a, b, c), static_cast<long double>(a) * b + c);
}

inline float plus(float a, float b) {
  if (std::fpclassify(a) == FP_SUBNORMAL) a = 0;
  if (std::fpclassify(b) == FP_SUBNORMAL) b = 0;
  return flush(a + b, static_cast<long double>(a) + b);
}

inline void dot_products(int sums, int a, int b) {
  if (rows_of(sums) != rows_of(a) || row_bytes_of(sums) != row_bytes_of(b)) refuse("shapes of a product differ");
  if (rows_of(b) * 4 != static_cast<int>(row_bytes_of(a))) refuse("pairs of a product differ");
  if (sums == a || a == b || sums == b) refuse("tiles of a product must be three");
  products++;
  const int pairs = rows_of(b), columns = static_cast<int>(row_bytes_of(b) / 4);
  for (int m = 0; m < rows_of(sums); m++) {
    for (int n = 0; n < columns; n++) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < pairs; k++) {
        const unsigned char *left = processor.tiles[a][m], *right = processor.tiles[b][k];
        even = multiply_add(make_float(left, 2 * k), make_float(right, 2 * n), even);
        odd = multiply_add(make_float(left, 2 * k + 1), make_float(right, 2 * n + 1), odd);
      }
      std::memcpy(&sum, processor.tiles[sums][m] + 4 * n, 4);
      sum = plus(sum, plus(even, odd));
      std::memcpy(processor.tiles[sums][m] + 4 * n, &sum, 4);
    }
  }
}

}  // namespace amx_shim

#define _tile_loadconfig(from) amx_shim::load_configuration(from)
#define _tile_storeconfig(to) amx_shim::store_configuration(to)
#define _tile_release() (amx_shim::processor = {})
#define _tile_zero(tile) amx_shim::zero(tile)
#define _tile_loadd(tile, base, stride) amx_shim::load(tile, base, stride)
#define _tile_stored(tile, base, stride) amx_shim::store(tile, base, stride)
#define _tile_dpbf16ps(sums, a, b) amx_shim::dot_products(sums, a, b)
