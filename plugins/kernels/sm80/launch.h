// Launchers of the portable kernels: compute capability 8.0 and newer. The build instantiates them.
#pragma once

#include <cuda_runtime_api.h>

#include "common/params.h"

namespace rainfusion::sm80 {

constexpr int kTileM = 128;    // query rows of a CTA, of at most two query blocks
constexpr int kWarpRows = 32;  // of a warp, all of one block

// Whether the kernel computes blocks of this shape. A key block is as many tiles as it takes.
constexpr bool runs(int /*head_size*/, const BlockShape& blocks) {
  return blocks.q % kWarpRows == 0 && 2 * blocks.q >= kTileM && blocks.k > 0;
}

template <typename Element, int kHeadSize>
cudaError_t launch_attention(const AttentionParams& params, int capability, cudaStream_t stream);

// The same by windows, for piecewise.
template <typename Element, int kHeadSize>
cudaError_t launch_window_attention(const AttentionParams& params, int capability,
                                    cudaStream_t stream);

template <typename Element, int kHeadSize>
cudaError_t launch_recall(const RecallParams& params, cudaStream_t stream);

}  // namespace rainfusion::sm80
