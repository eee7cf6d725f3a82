// Launchers of the portable kernels: compute capability 8.0 and newer.
#pragma once

#include <cuda_runtime_api.h>

#include "common/params.h"

namespace rainfusion::sm80 {

// One head size and element a source file. Two stages are faster where two CTAs still fit on a
// multiprocessor.
template <typename Element, int kHeadSize, int kStages>
cudaError_t launch_attention(const AttentionParams& params, cudaStream_t stream);

template <typename Element>
cudaError_t launch_recall(const RecallParams& params, cudaStream_t stream);

}  // namespace rainfusion::sm80
