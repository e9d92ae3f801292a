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

// Bits of what each instruction on numbers makes of a[i] and b[i], eight for a lane.
__global__ void probe_numbers(const float* a, const float* b, u32* bits) {
  const float x = a[threadIdx.x], y = b[threadIdx.x];
  u32* out = bits + 8 * threadIdx.x;
  out[0] = bits_of(exp2_fast(x));
  out[1] = bits_of(log2_fast(x));
  out[2] = bits_of(maximum_or_nan(x, y));
  out[3] = bits_of(minimum_or_nan(x, y));
  out[4] = bits_of(maximum(x, y));
  out[5] = BFloat16::pack(x, y);
  out[6] = Float16::pack(x, y);
  out[7] = TensorFloat32::round(x);
}

}  // namespace dynattn
