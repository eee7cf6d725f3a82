// rainfusion2: each query block's best key blocks, exactly, as a block mask.
//
// A CTA takes a few query blocks of one head: scores of their means against all key means in
// float32, then one warp a query block finds the score of the last kept block bit by bit.

#include <cuda_runtime.h>

#include "common/launch.h"
#include "plan/top_blocks.cuh"

namespace rainfusion {
namespace {

constexpr int kSelectThreads = 256;
constexpr int kMaxRows = kSelectThreads / 32;
constexpr int kScoreBytes = 40 * 1024;  // shared memory for scores, one row at least

struct SelectParams {
  const float* q_means;
  const float* k_means;
  uint32_t* masks;
  const float* sparsity;
  const int32_t* kv_len;
  int rows;  // query blocks in a CTA
  Geometry geometry;
};

// ordered(score) of key blocks against the CTA's query blocks; a thread takes whole key blocks.
// k_means is [head_size, k_blocks], so that threads read side by side.
__device__ void score_blocks(const SelectParams& p, const float* q_means, const float* k_means,
                             uint32_t* scores, int candidates) {
  const int head_size = p.geometry.head_size;
  const int k_blocks = p.geometry.k_cut.blocks;
  for (int k = threadIdx.x; k < candidates; k += kSelectThreads) {
    float dot[kMaxRows] = {};
#pragma unroll 2
    for (int d = 0; d < head_size; d += 4) {
      float y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] = __ldg(k_means + (d + i) * k_blocks + k);
#pragma unroll
      for (int r = 0; r < kMaxRows; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(q_means + r * head_size + d);
        dot[r] = fmaf(x.x, y[0], fmaf(x.y, y[1], fmaf(x.z, y[2], fmaf(x.w, y[3], dot[r]))));
      }
    }
#pragma unroll
    for (int r = 0; r < kMaxRows; ++r) {
      if (r < p.rows) scores[r * candidates + k] = ordered(dot[r] * p.geometry.softmax_scale);
    }
  }
}

__global__ void __launch_bounds__(kSelectThreads)
    select_blocks_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ float4 shared[];
  const Geometry& g = p.geometry;
  if (is_dense(g, p.sparsity)) return;
  const int first = blockIdx.x * p.rows;
  const int64_t q_base = static_cast<int64_t>(blockIdx.y) * g.q_cut.blocks;
  const int64_t k_base = static_cast<int64_t>(blockIdx.y) * g.k_cut.blocks;
  // A key block without keys is no candidate: it could only waste the budget.
  const int keys = key_count(p.kv_len, blockIdx.y / g.heads, g.k_cut.tokens);
  const int candidates = g.k_cut.blocks_below(keys);

  float* q_means = reinterpret_cast<float*>(shared);
  uint32_t* scores = reinterpret_cast<uint32_t*>(q_means + kMaxRows * p.geometry.head_size);
  for (int i = threadIdx.x; i < kMaxRows * p.geometry.head_size; i += kSelectThreads) {
    const int row = i / p.geometry.head_size;
    const bool real = row < p.rows && first + row < g.q_cut.blocks;
    q_means[i] = real ? p.q_means[(q_base + first) * g.head_size + i] : 0.f;
  }
  __syncthreads();
  score_blocks(p, q_means, p.k_means + k_base * g.head_size, scores, candidates);
  __syncthreads();

  const int row = threadIdx.x / 32;
  if (row >= p.rows || first + row >= g.q_cut.blocks) return;
  const int keep =
      static_cast<int>(min64(candidates, kept_blocks(clamp_sparsity(*p.sparsity), g.k_cut.blocks)));
  const int q_block = first + row;
  const auto always = [&](int k) {
    return k < g.k_cut.blocks && always_keeps(g.layout, g.q_cut, g.k_cut, q_block, k);
  };
  const auto scored = [&](int k) { return k < candidates; };
  write_mask_row(scores + row * candidates, candidates, keep, 0, scored, always, g.mask_words,
                 p.masks + (q_base + first + row) * g.mask_words);
}

}  // namespace

cudaError_t launch_select_blocks(const Geometry& geometry, const RainfusionTensors& tensors,
                                 const Workspace& workspace, cudaStream_t stream) {
  const int blocks = geometry.k_cut.blocks;
  const int fitting = static_cast<int>(kScoreBytes / (blocks * sizeof(uint32_t)));
  const int rows = fitting < 1 ? 1 : (fitting < kMaxRows ? fitting : kMaxRows);
  const size_t bytes =
      kMaxRows * geometry.head_size * sizeof(float) + rows * blocks * sizeof(uint32_t);
  const SelectParams params{workspace.q_means, workspace.k_means, workspace.masks,
                            tensors.sparsity,  tensors.kv_len,    rows,
                            geometry};
  const dim3 grid(static_cast<unsigned>(ceil_div(geometry.q_cut.blocks, rows)),
                  geometry.batch_heads());
  select_blocks_kernel<<<grid, kSelectThreads, bytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace rainfusion
