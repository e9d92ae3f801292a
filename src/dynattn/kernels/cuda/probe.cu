// One instruction at a time, on registers that the caller gives: what the kernels take for granted about the hardware.
// Run on the emulator by the tests and on a device by the device script: the same answers, or the emulator is wrong.
#include "intrinsics.cuh"

namespace dynattn {

// c[32][4] += A B of one warp: registers a[32][4], b[32][4] and metadata[32] by lane.
template <class Element, int SELECTOR>
__global__ void probe_sparse_product(const u32* a, const u32* b, const u32* metadata, float* c) {
  const int lane = threadIdx.x;
  u32 operand_a[4], operand_b[4];
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    operand_a[i] = a[4 * lane + i];
    operand_b[i] = b[4 * lane + i];
    sum[i] = c[4 * lane + i];
  }
  multiply_sparse<Element, SELECTOR>(sum, operand_a, operand_b, metadata[lane]);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = sum[i];
}

// bits[i] = difference(a[i], b[i]): its sign is what the choice reads; of -inf and -inf, and of NaN, it must be plus.
__global__ void probe_difference(const float* a, const float* b, u32* bits) {
  bits[threadIdx.x] = bits_of(difference(a[threadIdx.x], b[threadIdx.x]));
}

}  // namespace dynattn
