// rainfusion2: means of the tokens of each query and key block, in float32.

#include <cuda_runtime.h>

#include <algorithm>

#include "common/launch.h"
#include "sm80/tile.cuh"

namespace rainfusion {
namespace {

constexpr int kRowGroups = 16;  // rows a CTA sums side by side

struct MeansParams {
  const void* tensor[2];  // q, k
  RainfusionStrides strides[2];
  float* means[2];
  const float* sparsity;
  const int32_t* kv_len;
  Geometry geometry;
};

__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename Element, int kHeadSize>
__global__ void __launch_bounds__(kHeadSize / 8 * kRowGroups)
    block_means_kernel(const __grid_constant__ MeansParams p) {
  constexpr int kChunks = kHeadSize / 8;
  __shared__ float sums[kRowGroups][kHeadSize];
  const Geometry& g = p.geometry;
  if (is_dense(g.layout, p.sparsity)) return;
  const int which = blockIdx.z;
  const int batch = blockIdx.y / g.heads;
  const int head = blockIdx.y % g.heads;
  const BlockCut& cut = which == 0 ? g.q_cut : g.k_cut;
  if (blockIdx.x >= cut.blocks) return;
  const int begin = cut.begin(blockIdx.x);
  const int end = min(cut.end(blockIdx.x), key_count(p.kv_len, batch, cut.tokens));
  const RainfusionStrides& strides = p.strides[which];
  const Element* rows =
      static_cast<const Element*>(p.tensor[which]) + batch * strides.batch + head * strides.head;
  const int chunk = threadIdx.x % kChunks;
  const int group = threadIdx.x / kChunks;

  float sum[8] = {};
  for (int token = begin + group; token < end; token += kRowGroups) {
    const uint4 packed = *reinterpret_cast<const uint4*>(rows + token * strides.token + chunk * 8);
    const Element* elements = reinterpret_cast<const Element*>(&packed);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += to_float(elements[i]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[group][chunk * 8 + i] = sum[i];
  __syncthreads();
  if (threadIdx.x < kHeadSize) {
    float total = 0.f;
    for (int i = 0; i < kRowGroups; ++i) total += sums[i][threadIdx.x];
    float* means = p.means[which] + static_cast<int64_t>(blockIdx.y) * cut.blocks * kHeadSize;
    const int place =
        which == 0 ? blockIdx.x * kHeadSize + threadIdx.x : threadIdx.x * cut.blocks + blockIdx.x;
    means[place] = end > begin ? total / static_cast<float>(end - begin) : 0.f;
  }
}

template <typename Element>
void launch_for(const MeansParams& params, cudaStream_t stream) {
  const Geometry& g = params.geometry;
  const int head_size = g.head_size;
  const dim3 grid(std::max(g.q_cut.blocks, g.k_cut.blocks), g.batch_heads(), 2);
  const int threads = head_size / 8 * kRowGroups;
  if (head_size == 64) {
    block_means_kernel<Element, 64><<<grid, threads, 0, stream>>>(params);
  } else if (head_size == 96) {
    block_means_kernel<Element, 96><<<grid, threads, 0, stream>>>(params);
  } else {
    block_means_kernel<Element, 128><<<grid, threads, 0, stream>>>(params);
  }
}

}  // namespace

cudaError_t launch_block_means(const Geometry& geometry, const RainfusionTensors& tensors,
                               const Workspace& workspace, RainfusionDtype dtype,
                               cudaStream_t stream) {
  const MeansParams params{{tensors.q, tensors.k},
                           {tensors.q_strides, tensors.k_strides},
                           {workspace.q_means, workspace.k_means},
                           tensors.sparsity,
                           tensors.kv_len,
                           geometry};
  if (dtype == RAINFUSION_FLOAT16) {
    launch_for<__half>(params, stream);
  } else {
    launch_for<__nv_bfloat16>(params, stream);
  }
  return cudaGetLastError();
}

}  // namespace rainfusion
