#include "common/device.h"

#include "common/gpu_targets.h"

#ifndef RAINFUSION_GPU_TARGETS
#error "RAINFUSION_GPU_TARGETS must list what nvcc compiles for, as CMakeLists.txt does"
#endif

namespace rainfusion {
namespace {

constexpr int kFirstCapability = 80;

std::string name_of(int major, int minor) {
  return "compute capability " + std::to_string(major) + "." + std::to_string(minor);
}

std::string remedy(int major, int minor) {
  return "the library holds code for " RAINFUSION_GPU_TARGETS
         "; build it again with RAINFUSION_CUDA_ARCHITECTURES=" +
         std::to_string(major * 10 + minor) + " rainfusion-trt build-plugin";
}

}  // namespace

Result check_capability(int major, int minor) {
  if (major * 10 + minor < kFirstCapability) {
    return unsupported(name_of(major, minor) +
                       " has no kernel; a GPU of compute capability 8.0 or newer is needed");
  }
  if (targets_run_on(RAINFUSION_GPU_TARGETS, major, minor)) return {};
  return unsupported(name_of(major, minor) + " cannot run this build: " + remedy(major, minor));
}

Result device_capability(int* capability) {
  int device = 0;
  int major = 0;
  int minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  }
  if (error != cudaSuccess) return cuda_result(error, "reading the compute capability");
  *capability = major * 10 + minor;
  return check_capability(major, minor);
}

Result explain_launch(Result result, int capability) {
  if (result.status == RAINFUSION_UNSUPPORTED) {
    const int major = capability / 10;
    const int minor = capability % 10;
    result.message += " on " + name_of(major, minor) + "; " + remedy(major, minor);
  }
  return result;
}

}  // namespace rainfusion
