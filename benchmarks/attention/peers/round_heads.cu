// Rounds every head to e4m3 under a scale of its own, as FlashAttention-3 takes 8 bits.
//
// Its interface leaves the rounding to the caller. Two passes at the speed of memory, so that a
// slow caller is not held against it.

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 256;
constexpr int kElements = 8;  // of one load of 16 bytes
constexpr float kLargest = 448.0f;
constexpr float kSmallest = 1e-12f;  // of a head of zeros: no division by 0

union Bf16x8 {
  uint4 bits;
  __nv_bfloat162 pairs[kElements / 2];
};

union E4m3x8 {
  uint2 bits;
  __nv_fp8x2_storage_t pairs[kElements / 2];
};

// largest[head] as the bits of a float >= 0, whose order is that of integers; 0 beforehand.
__global__ void largest_kernel(const uint4* x, int64_t loads, unsigned* largest) {
  const uint4* head = x + blockIdx.y * loads;
  float most = 0.0f;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < loads;
       i += gridDim.x * int64_t{kThreads}) {
    const Bf16x8 read{head[i]};
    for (const __nv_bfloat162& pair : read.pairs) {
      const float2 values = __bfloat1622float2(pair);
      most = fmaxf(most, fmaxf(fabsf(values.x), fabsf(values.y)));
    }
  }
  const unsigned of_warp = __reduce_max_sync(0xffffffffu, __float_as_uint(most));
  if (threadIdx.x % 32 == 0) {
    atomicMax(largest + blockIdx.y, of_warp);
  }
}

// Turns largest[head] into the scale of the head as well: the blocks of a head write the same.
__global__ void round_kernel(const uint4* x, int64_t loads, const unsigned* largest, uint2* out,
                             float* descale) {
  const float scale = fmaxf(__uint_as_float(largest[blockIdx.y]), kSmallest) / kLargest;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    descale[blockIdx.y] = scale;
  }
  const float inverse = 1.0f / scale;
  const uint4* head = x + blockIdx.y * loads;
  uint2* rounded = out + blockIdx.y * loads;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < loads;
       i += gridDim.x * int64_t{kThreads}) {
    const Bf16x8 read{head[i]};
    E4m3x8 written;
    for (int pair = 0; pair < kElements / 2; ++pair) {
      float2 values = __bfloat1622float2(read.pairs[pair]);
      values.x *= inverse;
      values.y *= inverse;
      written.pairs[pair] = __nv_cvt_float2_to_fp8x2(values, __NV_SATFINITE, __NV_E4M3);
    }
    rounded[i] = written.bits;
  }
}

}  // namespace

// x is `heads` runs of `elements` bfloat16; largest and descale have one element a head. The
// number of elements is a multiple of 8. Returns a CUDA error.
extern "C" int peer_round_heads(const void* x, int heads, int64_t elements, void* largest,
                                void* out, void* descale, int blocks_of_head, void* stream) {
  const dim3 grid(blocks_of_head, heads);
  const int64_t loads = elements / kElements;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  unsigned* most = static_cast<unsigned*>(largest);
  cudaMemsetAsync(most, 0, heads * sizeof(unsigned), on);
  largest_kernel<<<grid, kThreads, 0, on>>>(static_cast<const uint4*>(x), loads, most);
  round_kernel<<<grid, kThreads, 0, on>>>(static_cast<const uint4*>(x), loads, most,
                                          static_cast<uint2*>(out), static_cast<float*>(descale));
  return cudaGetLastError();
}
