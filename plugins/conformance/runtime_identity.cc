// The host passes for the TensorRT whose headers it was built with.
#include <NvInferRuntime.h>

extern "C" int32_t getInferLibVersion() noexcept {
  return (NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR) * 100 + NV_TENSORRT_PATCH;
}
