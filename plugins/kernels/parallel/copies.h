// Launchers of the two copies of an exchange; see exchange.h for the buffers.
#pragma once

#include <cuda_runtime_api.h>

#include "parallel/exchange.h"

namespace rainfusion::parallel {

// The local tensor into what is sent, and the own part of `whole`.
cudaError_t launch_pack(const Exchange& exchange, const void* tensor, void* sent, void* whole,
                        cudaStream_t stream);

// What arrived, and the own heads of `whole`, into the local tensor.
cudaError_t launch_unpack(const Exchange& exchange, const void* whole, const void* arrived,
                          void* tensor, cudaStream_t stream);

}  // namespace rainfusion::parallel
