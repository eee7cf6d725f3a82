// SageAttention 2's kernels for Hopper, from its own sources, behind C functions.
//
// sage_quantisers.cuh and sage_kernels.cuh are the device halves of two of its files, which
// sage_attention.py cuts off above their first function of the host: those functions launch on the
// default stream, which no CUDA graph can capture, and compile for every dtype and mask.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>
#include <type_traits>

#include "sage_kernels.cuh"
#include "sage_quantisers.cuh"
#include "tensor.h"

namespace {

constexpr int kQueries = 64, kKeys = 128, kThreads = 128;  // of a block of attention
constexpr int kTokens = 64;                                // of a block that transposes
constexpr int kColumnThreads = 256;                        // of a block that rounds a column

template <typename T>
T* of(const PeerTensor& tensor) {
  return static_cast<T*>(tensor.data);
}

template <int kHeadSize>
void transpose(const PeerTensor& v, const PeerTensor& out, int batch, int heads, int tokens,
               cudaStream_t stream) {
  const dim3 grid(div_ceil(tokens, kTokens), heads, batch);
  TransposePadPermuteKernel<kHeadSize, kTokens, true, nv_bfloat16>
      <<<grid, kTokens * kHeadSize / 8, 0, stream>>>(
          of<nv_bfloat16>(v), of<nv_bfloat16>(out), tokens, v.batch_stride, v.row_stride,
          v.head_stride, out.batch_stride, out.row_stride, out.head_stride);
}

template <int kHeadSize>
int attend(const PeerTensor* tensors, float* const* scales, int batch, int heads, int queries,
           int keys, int padded_keys, float scale, cudaStream_t stream) {
  const PeerTensor &q = tensors[0], &k = tensors[1], &v = tensors[2], &out = tensors[3];
  const CUtensorMap map_q = create_tensor_map_4D<kQueries, kHeadSize>(
      of<int8_t>(q), batch, heads, queries, kHeadSize, q.batch_stride, q.head_stride, q.row_stride);
  const CUtensorMap map_k = create_tensor_map_4D<kKeys, kHeadSize>(
      of<int8_t>(k), batch, heads, keys, kHeadSize, k.batch_stride, k.head_stride, k.row_stride);
  const CUtensorMap map_v =
      create_tensor_map_4D<kHeadSize, kKeys>(of<int8_t>(v), batch, heads, kHeadSize, padded_keys,
                                             v.batch_stride, v.head_stride, v.row_stride);
  constexpr QuantGranularity kScales = QuantGranularity::kPerThread;
  const auto kernel = qk_int8_sv_f8_attn_kernel<kQueries, kKeys, kThreads, kHeadSize, kScales,
                                                kScales, nv_bfloat16, MaskMode::kNone,
                                                /*return_lse=*/false, /*fuse_v_scale=*/true>;
  constexpr int kShared = (kQueries + 2 * kKeys) * kHeadSize;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared)) {
    return error;
  }
  const dim3 grid(div_ceil(queries, kQueries), heads, batch);
  kernel<<<grid, kThreads, kShared, stream>>>(
      map_q, map_k, map_v, scales[0], scales[1], scales[2], of<nv_bfloat16>(out), nullptr,
      out.batch_stride, out.head_stride, out.row_stride, queries, keys, /*num_kv_groups=*/1, scale);
  return cudaGetLastError();
}

}  // namespace

// v [batch, heads, tokens, D] to out [batch, heads, D, tokens rounded up to 64] in the order of
// its products. Both are bfloat16. Returns a CUDA error; D is 64 or 128.
extern "C" int peer_transpose(const PeerTensor* tensors, int batch, int heads, int tokens,
                              int head_size, void* stream) {
  const auto run = head_size == 64 ? transpose<64> : transpose<128>;
  run(tensors[0], tensors[1], batch, heads, tokens, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

// Rounds every row of tensors[0] [batch, heads, D, tokens] to e4m3 in tensors[1], under a scale of
// its own, [batch, heads, D]. Returns a CUDA error.
extern "C" int peer_round_rows(const PeerTensor* tensors, float* scales, int batch, int heads,
                               int tokens, int head_size, float largest, void* stream) {
  const PeerTensor &x = tensors[0], &out = tensors[1];
  MeanScaleKernel<64, false, nv_bfloat16>
      <<<dim3(heads, batch, head_size), kColumnThreads, 0, static_cast<cudaStream_t>(stream)>>>(
          of<nv_bfloat16>(x), of<int8_t>(out), nullptr, scales, largest, tokens, x.batch_stride,
          x.row_stride, x.head_stride, out.batch_stride, out.row_stride, out.head_stride, 0, 0,
          heads * head_size, head_size);
  return cudaGetLastError();
}

// Attention of q, k (int8), v (e4m3, transposed) to out (bfloat16): tensors[0..3]. Scales are of
// q, k and v. Returns a CUDA error; D is 64 or 128.
extern "C" int peer_attend(const PeerTensor* tensors, float* const* scales, int batch, int heads,
                           int queries, int keys, int padded_keys, int head_size, float scale,
                           void* stream) {
  const auto run = head_size == 64 ? attend<64> : attend<128>;
  return run(tensors, scales, batch, heads, queries, keys, padded_keys, scale,
             static_cast<cudaStream_t>(stream));
}
