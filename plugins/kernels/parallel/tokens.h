// The video's tokens before the first block and behind the last one.
#pragma once

#include <cuda_runtime_api.h>

#include "common/result.h"
#include "rainfusion/parallel.h"

namespace rainfusion::parallel {

Result split_tokens(const RainfusionRows* rows, int64_t part_tokens, const void* whole, void* part,
                    cudaStream_t stream);

Result gather_tokens(const RainfusionRows* rows, int64_t part_tokens, const void* part, void* whole,
                     cudaStream_t stream);

}  // namespace rainfusion::parallel
