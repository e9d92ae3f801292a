// Products of a warpgroup whose operand B the threads themselves write to shared memory: what nm_wgmma.cu takes for granted
// of descriptors, registers and metadata, without the copy engine. Run on the emulator by the tests and on a device by the
// device script, as probe.cu is.
#include "nm_wgmma.cu"

namespace dynattn {

constexpr int PROBE_KEYS = 128, PROBE_VALUES = 64;  // rows of the two operands
constexpr int PROBE_PANEL_BYTES = PROBE_VALUES * LINE_BYTES;

// scores[128][64] = Q Kᵀ of 64 queries, columns 16 to 31 of the head; sums[128][COLUMNS / 2] = P V of 64 queries and keys 32
// to 63. `a`, [128][8], are a thread's registers of Q and then of P; `tiles` are 128 rows of K, 64 columns each, and then V in
// panels of 64 rows and 64 columns.
template <class Element, int COLUMNS, int SELECTOR>
__global__ void __launch_bounds__(WARPGROUP)
    probe_warpgroup(const u32* a, const u32* metadata, const u32* tiles, float* scores, float* sums) {
  DYNATTN_SHARED_MEMORY(memory, 1024);
  const int thread = threadIdx.x;
  const u32 base = shared_address(memory), start = (base + 1023) / 1024 * 1024;
  for (int i = thread; i < (PROBE_KEYS * LINE_BYTES + COLUMNS / LINE_COLUMNS * PROBE_PANEL_BYTES) / 4; i += WARPGROUP) {
    const u32 offset = 4 * i, swizzled = offset ^ ((offset >> 7 & 7) << 4);
    *reinterpret_cast<u32*>(memory + (start - base) + swizzled) = tiles[i];
  }
  stores_fence();
  block_barrier();
  const u32(&registers)[2][4] = *reinterpret_cast<const u32(*)[2][4]>(a + 8 * thread);
  float s[16][4] = {};
  pin(s);
  products_fence();
  multiply_scores<Element>(s, registers[0], descriptor(start + 32, 16, SWIZZLE_ATOM_BYTES), false);
  products_commit();
  products_wait<0>();
  pin(s);
#pragma unroll
  for (int i = 0; i < 64; ++i) scores[64 * thread + i] = s[i / 4][i % 4];
  float o[COLUMNS / 8][4] = {};
  pin(o);
  products_fence();
  multiply_values<Element, SELECTOR>(
      o, registers[1],
      descriptor(start + PROBE_KEYS * LINE_BYTES + 32 * LINE_BYTES, PROBE_PANEL_BYTES, SWIZZLE_ATOM_BYTES),
      metadata[thread]);
  products_commit();
  products_wait<0>();
  pin(o);
#pragma unroll
  for (int i = 0; i < COLUMNS / 2; ++i) sums[COLUMNS / 2 * thread + i] = o[i / 4][i % 4];
}

}  // namespace dynattn
