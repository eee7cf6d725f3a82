// The decision rules of the methods: recalls in, a kind and a block mask for every head out.

#include <cuda_runtime.h>

#include "common/launch.h"
#include "plan/recall_task.cuh"

namespace rainfusion {
namespace {

constexpr float kTwoWayRecall = 0.95f;

struct Decision {
  int kind;
  int mask;
  float recall_temporal;
  float recall_spatial;
};

// Mean over the sampled queries of batch element and head `batch_head`.
__device__ float mean_recall(const Geometry& g, const Workspace& workspace, int batch_head,
                             int sample, int band, int keys) {
  const int count = sampled_tokens(g, sample, keys).count;
  if (count == 0) return 0.f;
  const int64_t place = (static_cast<int64_t>(batch_head) * kSamples + sample) * kSampleTiles;
  const float* partial = workspace.partial_recall + place * kMaxBands + band;
  float sum = 0.f;
#pragma unroll
  for (int tile = 0; tile < kSampleTiles; ++tile) {
    sum += tile * kSampleTileRows < count ? partial[tile * kMaxBands] : 0.f;
  }
  return sum / static_cast<float>(count);
}

__device__ Decision decide(const Geometry& g, const Workspace& workspace, int batch_head,
                           int keys) {
  const int bands = g.bands();
  const int last = bands - 1;
  float recall[kSamples] = {0.f, 0.f};
  int band[kSamples] = {-1, -1};  // the first band whose recall reaches alpha
  for (int sample = 0; sample < kSamples; ++sample) {
    for (int b = 0; b < bands && band[sample] < 0; ++b) {
      recall[sample] = mean_recall(g, workspace, batch_head, sample, b, keys);
      if (recall[sample] >= g.alpha) band[sample] = b;
    }
  }
  Decision decision{RAINFUSION_KIND_TEXTURAL, 0, recall[0], recall[1]};
  if (g.method == RAINFUSION_METHOD_TWO_WAY) {
    const bool temporal = recall[0] > kTwoWayRecall || recall[0] > recall[1];
    band[0] = temporal ? last : -1;
    band[1] = last;
  }
  if (band[0] >= 0) {
    decision.kind = RAINFUSION_KIND_TEMPORAL;
    decision.mask = bands + band[0];
  } else if (band[1] >= 0) {
    decision.kind = RAINFUSION_KIND_SPATIAL;
    decision.mask = band[1];
  }
  return decision;
}

// Checkerboard keys of a batch element below kv_len.
__device__ int gathered_keys(const Geometry& g, float sparsity, int keys) {
  const int64_t raster = max64(0, min64(g.layout.free_tokens, keys - g.layout.free_begin()));
  return static_cast<int>(
      checkerboard_below(g.layout, stride_of(clamp_sparsity(sparsity)), raster));
}

__global__ void decide_kernel(const __grid_constant__ Geometry g, const float* sparsity,
                              const int32_t* kv_len, const __grid_constant__ Workspace workspace,
                              const __grid_constant__ RainfusionPlan plan) {
  const int batch_head = blockIdx.x * blockDim.x + threadIdx.x;
  if (batch_head == 0) *workspace.next_item = 0;
  if (batch_head >= g.batch_heads()) return;
  const float nan = nanf("");
  Decision decision{RAINFUSION_KIND_DENSE, 0, nan, nan};
  if (!is_dense(g.layout, sparsity)) {
    const int batch = batch_head / g.heads;
    const int keys = key_count(kv_len, batch, g.q_cut.tokens);
    decision = g.method == RAINFUSION_METHOD_RAINFUSION2
                   ? Decision{RAINFUSION_KIND_BLOCKS, batch_head, nan, nan}
                   : decide(g, workspace, batch_head, keys);
    if (batch_head % g.heads == 0) {
      workspace.gathered_count[batch] = gathered_keys(g, *sparsity, keys);
    }
  }
  workspace.kind[batch_head] = decision.kind;
  workspace.mask_index[batch_head] = decision.mask;
  if (plan.kind != nullptr) plan.kind[batch_head] = decision.kind;
  if (plan.recall_temporal != nullptr) plan.recall_temporal[batch_head] = decision.recall_temporal;
  if (plan.recall_spatial != nullptr) plan.recall_spatial[batch_head] = decision.recall_spatial;
}

}  // namespace

cudaError_t launch_decide(const Geometry& geometry, const RainfusionTensors& tensors,
                          const Workspace& workspace, const RainfusionPlan& plan,
                          cudaStream_t stream) {
  constexpr int kThreads = 64;
  const unsigned ctas = static_cast<unsigned>(ceil_div(geometry.batch_heads(), kThreads));
  decide_kernel<<<ctas, kThreads, 0, stream>>>(geometry, tensors.sparsity, tensors.kv_len,
                                               workspace, plan);
  return cudaGetLastError();
}

}  // namespace rainfusion
