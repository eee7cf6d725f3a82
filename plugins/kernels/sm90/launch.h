// Launchers of Hopper's kernels: compute capability 9.0, where the library was built for sm_90a.
// The build instantiates them.
#pragma once

#include <cuda_runtime_api.h>

#include "common/params.h"

namespace rainfusion::sm90 {

template <typename Element, int kHeadSize>
cudaError_t launch_attention(const AttentionParams& params, int capability, cudaStream_t stream);

template <typename Element, int kHeadSize>
cudaError_t launch_recall(const RecallParams& params, cudaStream_t stream);

}  // namespace rainfusion::sm90
