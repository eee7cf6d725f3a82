// Launch of a persistent kernel: a CTA a multiprocessor, or fewer where there is less to do.
#pragma once

#include <cuda_runtime_api.h>

namespace rainfusion::sm90 {

template <typename Params>
cudaError_t launch_persistent(void (*kernel)(Params), int threads, int shared_bytes, int32_t items,
                              const Params& params, cudaStream_t stream) {
  int device = 0;
  int processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  const int ctas = items < processors ? items : processors;
  kernel<<<ctas, threads, shared_bytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace rainfusion::sm90
