// Attention of a sequence that several GPUs share: exchange, attention, exchange.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "common/result.h"
#include "rainfusion/parallel.h"

namespace rainfusion::parallel {

Result shared_workspace_size(const RainfusionProblem* local, const RainfusionShare* share,
                             size_t* bytes);

Result shared_workspace_bound(const RainfusionProblem* largest, size_t* bytes);

Result shared_attention(const RainfusionProblem* local, const RainfusionTensors* tensors,
                        void* workspace, size_t workspace_bytes, cudaStream_t stream);

}  // namespace rainfusion::parallel
