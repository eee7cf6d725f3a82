// rainfusion2: means of the tokens of each query and key block, in float32.

#include <cuda_runtime.h>

#include <algorithm>

#include "common/launch.h"
#include "common/variants.h"

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

template <typename Element, int kHeadSize>
constexpr int kRowChunks = kHeadSize / ElementTraits<Element>::kPerChunk;

template <typename Element, int kHeadSize>
__global__ void __launch_bounds__(kRowChunks<Element, kHeadSize>* kRowGroups)
    block_means_kernel(const __grid_constant__ MeansParams p) {
  using Traits = ElementTraits<Element>;
  constexpr int kChunks = kRowChunks<Element, kHeadSize>;
  __shared__ float sums[kRowGroups][kHeadSize];
  const Geometry& g = p.geometry;
  if (is_dense(g, p.sparsity)) return;
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

  float sum[Traits::kPerChunk] = {};
  for (int token = begin + group; token < end; token += kRowGroups) {
    const Element* source = rows + token * strides.token + chunk * Traits::kPerChunk;
    const uint4 packed = *reinterpret_cast<const uint4*>(source);
    const Element* elements = reinterpret_cast<const Element*>(&packed);
#pragma unroll
    for (int i = 0; i < Traits::kPerChunk; ++i) sum[i] += Traits::to_float(elements[i]);
  }
#pragma unroll
  for (int i = 0; i < Traits::kPerChunk; ++i) sums[group][chunk * Traits::kPerChunk + i] = sum[i];
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

}  // namespace

cudaError_t launch_block_means(const Geometry& geometry, const RainfusionTensors& tensors,
                               const Workspace& workspace, cudaStream_t stream) {
  const MeansParams params{{tensors.q, tensors.k},
                           {tensors.q_strides, tensors.k_strides},
                           {workspace.q_means, workspace.k_means},
                           tensors.sparsity,
                           tensors.kv_len,
                           geometry};
  const Geometry& g = geometry;
  const dim3 grid(std::max(g.q_cut.blocks, g.k_cut.blocks), g.batch_heads(), 2);
  return with_variant(g.dtype, g.head_size, [&](auto element, auto head_size) {
    using Element = typename decltype(element)::Type;
    constexpr int kThreads = kRowChunks<Element, head_size()> * kRowGroups;
    block_means_kernel<Element, head_size()><<<grid, kThreads, 0, stream>>>(params);
    return cudaGetLastError();
  });
}

}  // namespace rainfusion
