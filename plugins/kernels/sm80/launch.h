// Launchers of the portable kernels: compute capability 8.0 and newer. The build instantiates them.
#pragma once

#include <cuda_runtime_api.h>

#include "common/params.h"

namespace rainfusion::sm80 {

template <typename Element, int kHeadSize>
cudaError_t launch_attention(const AttentionParams& params, int capability, cudaStream_t stream);

template <typename Element, int kHeadSize>
cudaError_t launch_recall(const RecallParams& params, cudaStream_t stream);

}  // namespace rainfusion::sm80
