// The plan in the form callers see: density and a byte for each block pair.

#include <cuda_runtime.h>

#include "common/key_list.cuh"
#include "common/launch.h"

namespace rainfusion {
namespace {

constexpr int kThreads = 256;

struct ReportParams {
  AttentionParams attention;
  float* density;
  uint8_t* block_mask;
};

__global__ void __launch_bounds__(kThreads)
    density_kernel(const __grid_constant__ ReportParams params) {
  __shared__ unsigned long long total;
  const AttentionParams& p = params.attention;
  const int batch = blockIdx.x / p.heads;
  const int head = blockIdx.x % p.heads;
  const BlockCut& cut = p.q_cut;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  unsigned long long pairs = 0;
  for (int q = threadIdx.x; q < cut.blocks; q += kThreads) {
    // Blocks whole: from token 0 on, so that rows past kv_len count as the others.
    const KeyList keys(p, batch, head, q, 0, cut.is_sink(q));
    pairs += (cut.end(q) - cut.begin(q)) * keys.count(p.k_cut);
  }
  atomicAdd(&total, pairs);  // integers: the order does not matter
  __syncthreads();
  if (threadIdx.x == 0) {
    const int keys = key_count(p.kv_len, batch, cut.tokens);
    const double all = static_cast<double>(cut.tokens) * keys;
    params.density[blockIdx.x] =
        keys > 0 ? static_cast<float>(static_cast<double>(total) / all) : 0.f;
  }
}

__global__ void __launch_bounds__(kThreads)
    block_mask_kernel(const __grid_constant__ ReportParams params) {
  const AttentionParams& p = params.attention;
  const int batch_head = blockIdx.y;
  const int q = blockIdx.x;
  const int kind = p.kind[batch_head];
  const bool whole = kind == RAINFUSION_KIND_DENSE || kind == RAINFUSION_KIND_TEXTURAL;
  const int64_t mask_row = static_cast<int64_t>(p.mask_index[batch_head]) * p.q_cut.blocks + q;
  const uint32_t* row = p.masks + mask_row * p.mask_words;
  const int64_t out_row = static_cast<int64_t>(batch_head) * p.q_cut.blocks + q;
  uint8_t* out = params.block_mask + out_row * p.k_cut.blocks;
  for (int k = threadIdx.x; k < p.k_cut.blocks; k += kThreads) {
    out[k] = whole ? 1 : row[k / 32] >> k % 32 & 1;
  }
}

}  // namespace

cudaError_t launch_report(const AttentionParams& attention, const RainfusionPlan& plan,
                          cudaStream_t stream) {
  const ReportParams params{attention, plan.density, plan.block_mask};
  const unsigned batch_heads = static_cast<unsigned>(attention.batch) * attention.heads;
  if (plan.density != nullptr) {
    density_kernel<<<batch_heads, kThreads, 0, stream>>>(params);
  }
  if (plan.block_mask != nullptr) {
    const dim3 grid(attention.q_cut.blocks, batch_heads);
    block_mask_kernel<<<grid, kThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

}  // namespace rainfusion
