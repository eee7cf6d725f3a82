// Launchers of Hopper's kernels: compute capability 9.0, where the library was built for sm_90a.
// The build instantiates them.
#pragma once

#include <cuda_runtime_api.h>

#include "common/params.h"

namespace rainfusion::sm90 {

// Queries and keys of a tile.
constexpr BlockShape tile_shape(int head_size) {
  return BlockShape{192, head_size <= 64 ? 128 : head_size <= 96 ? 96 : 80};
}

// Whether the kernel computes blocks of this shape: a block is one tile, or less of it.
constexpr bool runs(int head_size, const BlockShape& blocks) {
  return blocks.q <= tile_shape(head_size).q && blocks.k <= tile_shape(head_size).k;
}

template <typename Element, int kHeadSize>
cudaError_t launch_attention(const AttentionParams& params, int capability, cudaStream_t stream);

// The same by windows, for piecewise.
template <typename Element, int kHeadSize>
cudaError_t launch_window_attention(const AttentionParams& params, int capability,
                                    cudaStream_t stream);

template <typename Element, int kHeadSize>
cudaError_t launch_recall(const RecallParams& params, cudaStream_t stream);

}  // namespace rainfusion::sm90
