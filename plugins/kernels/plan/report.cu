// The plan in the form callers see: density and a byte for each block pair.

#include <cuda_runtime.h>

#include "common/launch.h"

namespace rainfusion {
namespace {

constexpr int kThreads = 256;

struct ReportParams {
  const int32_t* kv_len;
  Workspace workspace;
  float* density;
  uint8_t* block_mask;
  Geometry geometry;
};

// Keys below kv_len that the rows of a query block attend to, counted by one thread.
__device__ int64_t attended_keys(const Geometry& g, const Workspace& w, int kind, int batch,
                                 const uint32_t* row, bool sink, int keys) {
  if (sink || kind == RAINFUSION_KIND_DENSE) return keys;
  if (kind == RAINFUSION_KIND_TEXTURAL) {
    const int64_t before = min64(g.layout.free_begin(), keys);
    const int64_t after = max64(0, keys - g.layout.free_end());
    return before + w.gathered_count[batch] + after;
  }
  const BlockCut& cut = g.k_cut;
  int64_t count = 0;
  for (int k = 0; k < cut.blocks && cut.begin(k) < keys; ++k) {
    if (row[k / 32] >> k % 32 & 1) count += min(cut.end(k), keys) - cut.begin(k);
  }
  return count;
}

__global__ void __launch_bounds__(kThreads) density_kernel(const __grid_constant__ ReportParams p) {
  __shared__ unsigned long long total;
  const Geometry& g = p.geometry;
  const int batch = blockIdx.x / g.heads;
  const BlockCut& cut = g.q_cut;
  const int keys = key_count(p.kv_len, batch, cut.tokens);
  const int kind = p.workspace.kind[blockIdx.x];
  const int64_t first_row = static_cast<int64_t>(p.workspace.mask_index[blockIdx.x]) * cut.blocks;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  unsigned long long pairs = 0;
  for (int q = threadIdx.x; q < cut.blocks; q += kThreads) {
    const uint32_t* row = p.workspace.masks + (first_row + q) * g.mask_words;
    pairs += (cut.end(q) - cut.begin(q)) *
             attended_keys(g, p.workspace, kind, batch, row, cut.is_sink(q), keys);
  }
  atomicAdd(&total, pairs);  // integers: the order does not matter
  __syncthreads();
  if (threadIdx.x == 0) {
    const double all = static_cast<double>(cut.tokens) * keys;
    p.density[blockIdx.x] = keys > 0 ? static_cast<float>(static_cast<double>(total) / all) : 0.f;
  }
}

__global__ void __launch_bounds__(kThreads)
    block_mask_kernel(const __grid_constant__ ReportParams p) {
  const Geometry& g = p.geometry;
  const int batch_head = blockIdx.y;
  const int q = blockIdx.x;
  const int kind = p.workspace.kind[batch_head];
  const bool whole = kind == RAINFUSION_KIND_DENSE || kind == RAINFUSION_KIND_TEXTURAL;
  const int64_t mask_row =
      static_cast<int64_t>(p.workspace.mask_index[batch_head]) * g.q_cut.blocks + q;
  const uint32_t* row = p.workspace.masks + mask_row * g.mask_words;
  uint8_t* out =
      p.block_mask + (static_cast<int64_t>(batch_head) * g.q_cut.blocks + q) * g.k_cut.blocks;
  for (int k = threadIdx.x; k < g.k_cut.blocks; k += kThreads) {
    out[k] = whole ? 1 : row[k / 32] >> k % 32 & 1;
  }
}

}  // namespace

cudaError_t launch_report(const Geometry& geometry, const RainfusionTensors& tensors,
                          const Workspace& workspace, const RainfusionPlan& plan,
                          cudaStream_t stream) {
  const ReportParams params{tensors.kv_len, workspace, plan.density, plan.block_mask, geometry};
  if (plan.density != nullptr) {
    density_kernel<<<geometry.batch_heads(), kThreads, 0, stream>>>(params);
  }
  if (plan.block_mask != nullptr) {
    const dim3 grid(geometry.q_cut.blocks, geometry.batch_heads());
    block_mask_kernel<<<grid, kThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

}  // namespace rainfusion
