// A status with its sentence; how errors travel inside the library.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "rainfusion/rainfusion.h"

namespace rainfusion {

struct Result {
  RainfusionStatus status = RAINFUSION_SUCCESS;
  std::string message;

  bool ok() const { return status == RAINFUSION_SUCCESS; }
};

inline Result invalid(std::string message) {
  return {RAINFUSION_INVALID_ARGUMENT, std::move(message)};
}

inline Result unsupported(std::string message) {
  return {RAINFUSION_UNSUPPORTED, std::move(message)};
}

// Whether CUDA found nothing in the library that it could run on the device.
inline bool is_code_missing(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion ||
         error == cudaErrorJitCompilationDisabled || error == cudaErrorJitCompilerNotFound;
}

// The one place where a CUDA error becomes a status.
inline Result cuda_result(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return {is_code_missing(error) ? RAINFUSION_UNSUPPORTED : RAINFUSION_CUDA_ERROR,
          std::string(what) + " failed: " + cudaGetErrorName(error) + " (" +
              cudaGetErrorString(error) + ")"};
}

}  // namespace rainfusion
