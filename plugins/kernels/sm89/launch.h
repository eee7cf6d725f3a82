// 8-bit attention without Hopper's instructions (compute capability 8.9 and newer): its launch.
#pragma once

#include <cuda_runtime_api.h>

#include "common/params.h"

namespace rainfusion::sm89 {

constexpr int kFirstCapability = 89;  // whose mma.sync takes e4m3

// Of what launch_eight_bit_tiles has rounded: all heads, dense, by blocks or by windows.
cudaError_t launch_eight_bit_attention(const Geometry& geometry, const EightBitParams& params,
                                       cudaStream_t stream);

}  // namespace rainfusion::sm89
