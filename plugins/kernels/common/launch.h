// Launchers of the steps of a call, in their order. Each enqueues on `stream` and returns what the
// launch returned.
#pragma once

#include <cuda_runtime_api.h>

#include "common/params.h"

namespace rainfusion {

// Block masks of spatial and temporal heads.
cudaError_t launch_band_masks(const Geometry& geometry, const RainfusionTensors& tensors,
                              const Workspace& workspace, cudaStream_t stream);

// ARM's recalls, as partial sums, through the kernel of a compute capability (major * 10 + minor).
cudaError_t launch_recall(const RecallParams& params, int capability, cudaStream_t stream);

// Every head's kind and block mask, from the recalls.
cudaError_t launch_decide(const Geometry& geometry, const RainfusionTensors& tensors,
                          const Workspace& workspace, const RainfusionPlan& plan,
                          cudaStream_t stream);

// rainfusion2: means of query and key blocks, then each query block's best key blocks.
cudaError_t launch_block_means(const Geometry& geometry, const RainfusionTensors& tensors,
                               const Workspace& workspace, cudaStream_t stream);
cudaError_t launch_select_blocks(const Geometry& geometry, const RainfusionTensors& tensors,
                                 const Workspace& workspace, cudaStream_t stream);

// piecewise: means of query and key windows, pseudo-keys and their values and biases; then each
// query window's best key windows.
cudaError_t launch_window_means(const Geometry& geometry, const RainfusionTensors& tensors,
                                const Workspace& workspace, cudaStream_t stream);
cudaError_t launch_select_windows(const Geometry& geometry, const RainfusionTensors& tensors,
                                  const Workspace& workspace, cudaStream_t stream);

// Copies the checkerboard keys and values of textural heads together.
cudaError_t launch_gather(const Geometry& geometry, const RainfusionTensors& tensors,
                          const Workspace& workspace, cudaStream_t stream);

// Density and block masks for callers that ask: what attention will do with the plan.
cudaError_t launch_report(const AttentionParams& attention, const RainfusionPlan& plan,
                          cudaStream_t stream);

// 8 bits: q, k and v, or pseudo-keys, rounded into tiles. After the plan, on which the tiles
// depend.
cudaError_t launch_eight_bit_tiles(const Geometry& geometry, const RainfusionTensors& tensors,
                                   const Workspace& workspace, cudaStream_t stream);

// Whether there is an 8-bit attention kernel for a compute capability that the library runs on; and
// its launch.
bool has_eight_bit_attention(int capability);
cudaError_t launch_eight_bit_attention(const Geometry& geometry, const EightBitParams& params,
                                       int capability, cudaStream_t stream);

// Picks the attention kernel of a compute capability (major * 10 + minor).
cudaError_t launch_attention(const Geometry& geometry, const AttentionParams& params,
                             int capability, cudaStream_t stream);

}  // namespace rainfusion
