// The tile engine on AMX: eight tiles of 16 rows × 64 bytes. 0 … 3 are accumulators, 4 and 5 A, 6 and 7 B.
//
// GCC's intrinsics put the tile's number into the text of an assembler line, so it has to be a digit there. They also
// tell the compiler nothing of the memory that a load reads, and only of eight bytes of a configuration: fence() keeps
// writes to memory in front of the loads that follow.
#pragma once

#if !defined(DYNATTN_TILES_EMULATED)
#include <immintrin.h>
#endif

namespace dynattn::DYNATTN_NAMESPACE {

// What LDTILECFG reads.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64, "the processor reads 64 bytes");

class Engine {
 public:
  // Another library's configuration is put back at the end. Where there was none its palette is 0, which releases the
  // tiles, so that the operating system has none to save.
  Engine() {
    static const TileConfiguration ours;
    __asm__ volatile("" : : "r"(&before_), "r"(&ours) : "memory");  // both are all in memory now
    _tile_storeconfig(&before_);
    _tile_loadconfig(&ours);
    fence();
  }
  ~Engine() {
    fence();
    _tile_loadconfig(&before_);
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  template <int kC>
  void zero() {
    if constexpr (kC == 0) _tile_zero(0);
    if constexpr (kC == 1) _tile_zero(1);
    if constexpr (kC == 2) _tile_zero(2);
    if constexpr (kC == 3) _tile_zero(3);
  }

  template <int kC>
  void load_sums(const float* from, int64_t stride) {
    if constexpr (kC == 0) _tile_loadd(0, from, stride);
    if constexpr (kC == 1) _tile_loadd(1, from, stride);
    if constexpr (kC == 2) _tile_loadd(2, from, stride);
    if constexpr (kC == 3) _tile_loadd(3, from, stride);
  }

  template <int kI>
  void load_a(const char* from, int64_t stride) {
    if constexpr (kI == 0) _tile_loadd(4, from, stride);
    if constexpr (kI == 1) _tile_loadd(5, from, stride);
  }

  template <int kJ>
  void load_b(const char* from) {
    if constexpr (kJ == 0) _tile_loadd(6, from, 64);
    if constexpr (kJ == 1) _tile_loadd(7, from, 64);
  }

  template <int kI, int kJ>
  void multiply() {
    if constexpr (kI == 0 && kJ == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kI == 0 && kJ == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kI == 1 && kJ == 0) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kI == 1 && kJ == 1) _tile_dpbf16ps(3, 5, 7);
  }

  template <int kC>
  void store(float* to, int64_t stride) {
    if constexpr (kC == 0) _tile_stored(0, to, stride);
    if constexpr (kC == 1) _tile_stored(1, to, stride);
    if constexpr (kC == 2) _tile_stored(2, to, stride);
    if constexpr (kC == 3) _tile_stored(3, to, stride);
  }

  // Nothing in memory is moved across this line by the compiler.
  void fence() { __asm__ volatile("" ::: "memory"); }

 private:
  TileConfiguration before_;
};

}  // namespace dynattn::DYNATTN_NAMESPACE
