// The decision rules of the methods: recalls in, a kind and a block mask for every head out.

#include <cuda_runtime.h>

#include "common/launch.h"
#include "common/queue.cuh"
#include "plan/recall_task.cuh"

namespace rainfusion {
namespace {

constexpr float kTwoWayRecall = 0.95f;

struct Decision {
  int kind;
  int mask;
  float recall[kAxes];  // NaN where ARM did not run
};

// Mean over the sampled queries of batch element and head `batch_head`.
__device__ float mean_recall(const Geometry& g, const Workspace& workspace, int batch_head,
                             Axis axis, int band, int keys) {
  const int count = sampled_tokens(g, axis, keys).count;
  if (count == 0) return 0.f;
  const float* partial =
      workspace.partial_recall + partial_recall_place(batch_head, axis, 0) + band;
  float sum = 0.f;
#pragma unroll
  for (int tile = 0; tile < kSampleTiles; ++tile) {
    sum += tile * kSampleTileRows < count ? partial[tile * kMaxBands] : 0.f;
  }
  return sum / static_cast<float>(count);
}

// ARM along an axis: the first band whose recall reaches alpha, -1 if none does, and the last
// recall that was looked at.
struct Finding {
  int band;
  float recall;
};

__device__ Finding find_band(const Geometry& g, const Workspace& workspace, int batch_head,
                             Axis axis, int keys) {
  Finding found{-1, 0.f};
  for (int b = 0; b < g.method.bands && found.band < 0; ++b) {
    found.recall = mean_recall(g, workspace, batch_head, axis, b, keys);
    if (found.recall >= g.alpha) found.band = b;
  }
  return found;
}

// Of the rules that ask ARM.
__device__ Decision decide_by_recall(const Geometry& g, const Workspace& workspace, int batch_head,
                                     int keys) {
  Finding spatial = find_band(g, workspace, batch_head, kSpatial, keys);
  Finding temporal = find_band(g, workspace, batch_head, kTemporal, keys);
  if (g.method.rule == Rule::kTwoWay) {
    const bool is_temporal = temporal.recall > kTwoWayRecall || temporal.recall > spatial.recall;
    temporal.band = is_temporal ? 0 : -1;
    spatial.band = 0;
  }
  Decision decision{RAINFUSION_KIND_TEXTURAL, 0, {spatial.recall, temporal.recall}};
  if (temporal.band >= 0) {
    decision.kind = RAINFUSION_KIND_TEMPORAL;
    decision.mask = g.mask_of(kTemporal, temporal.band);
  } else if (spatial.band >= 0) {
    decision.kind = RAINFUSION_KIND_SPATIAL;
    decision.mask = g.mask_of(kSpatial, spatial.band);
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
  if (batch_head == 0) reset_queue(workspace.next_item);  // for the attention of this call
  if (batch_head >= g.batch_heads()) return;
  const float nan = nanf("");
  Decision decision{RAINFUSION_KIND_DENSE, 0, {nan, nan}};
  if (!is_dense(g, sparsity)) {
    const int batch = batch_head / g.heads;
    const int keys = key_count(kv_len, batch, g.q_cut.tokens);
    if (g.method.by_blocks()) {
      decision = {RAINFUSION_KIND_BLOCKS, batch_head, {nan, nan}};
    } else if (g.method.by_windows()) {
      decision = {RAINFUSION_KIND_WINDOWS, batch_head, {nan, nan}};
    } else {
      decision = decide_by_recall(g, workspace, batch_head, keys);
    }
    if (batch_head % g.heads == 0) {
      workspace.gathered_count[batch] = gathered_keys(g, *sparsity, keys);
    }
  }
  workspace.kind[batch_head] = decision.kind;
  workspace.mask_index[batch_head] = decision.mask;
  if (plan.kind != nullptr) plan.kind[batch_head] = decision.kind;
  const float (&recall)[kAxes] = decision.recall;
  if (plan.recall_spatial != nullptr) plan.recall_spatial[batch_head] = recall[kSpatial];
  if (plan.recall_temporal != nullptr) plan.recall_temporal[batch_head] = recall[kTemporal];
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
