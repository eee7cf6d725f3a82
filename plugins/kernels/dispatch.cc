// Which kernel runs where. An attention kernel for a newer GPU is one more line.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "sm80/launch.h"
#include "sm90/launch.h"

namespace rainfusion {
namespace {

struct AttentionKernel {
  int first_capability;  // major * 10 + minor
  int last_capability;
  RainfusionDtype dtype;
  int head_size;
  cudaError_t (*launch)(const AttentionParams&, cudaStream_t);
};

constexpr int kAny = 1000;

// The first line that fits is taken. Compute capabilities 8.6 to 8.9 and 12.x have 100 KB of shared
// memory, which two CTAs of D = 96 share with one stage only.
constexpr AttentionKernel kAttentionKernels[] = {
#ifdef RAINFUSION_SM90
    {90, 90, RAINFUSION_FLOAT16, 64, sm90::launch_attention<__half, 64>},
    {90, 90, RAINFUSION_BFLOAT16, 64, sm90::launch_attention<__nv_bfloat16, 64>},
    {90, 90, RAINFUSION_FLOAT16, 96, sm90::launch_attention<__half, 96>},
    {90, 90, RAINFUSION_BFLOAT16, 96, sm90::launch_attention<__nv_bfloat16, 96>},
    {90, 90, RAINFUSION_FLOAT16, 128, sm90::launch_attention<__half, 128>},
    {90, 90, RAINFUSION_BFLOAT16, 128, sm90::launch_attention<__nv_bfloat16, 128>},
#endif
    {80, kAny, RAINFUSION_FLOAT16, 64, sm80::launch_attention<__half, 64, 1>},
    {80, kAny, RAINFUSION_BFLOAT16, 64, sm80::launch_attention<__nv_bfloat16, 64, 1>},
    {86, 89, RAINFUSION_FLOAT16, 96, sm80::launch_attention<__half, 96, 1>},
    {86, 89, RAINFUSION_BFLOAT16, 96, sm80::launch_attention<__nv_bfloat16, 96, 1>},
    {120, kAny, RAINFUSION_FLOAT16, 96, sm80::launch_attention<__half, 96, 1>},
    {120, kAny, RAINFUSION_BFLOAT16, 96, sm80::launch_attention<__nv_bfloat16, 96, 1>},
    {80, kAny, RAINFUSION_FLOAT16, 96, sm80::launch_attention<__half, 96, 2>},
    {80, kAny, RAINFUSION_BFLOAT16, 96, sm80::launch_attention<__nv_bfloat16, 96, 2>},
    {80, kAny, RAINFUSION_FLOAT16, 128, sm80::launch_attention<__half, 128, 1>},
    {80, kAny, RAINFUSION_BFLOAT16, 128, sm80::launch_attention<__nv_bfloat16, 128, 1>},
};

}  // namespace

cudaError_t launch_attention(const AttentionParams& params, RainfusionDtype dtype, int head_size,
                             int capability, cudaStream_t stream) {
  for (const AttentionKernel& kernel : kAttentionKernels) {
    if (kernel.dtype == dtype && kernel.head_size == head_size &&
        kernel.first_capability <= capability && capability <= kernel.last_capability) {
      return kernel.launch(params, stream);
    }
  }
  return cudaErrorNoKernelImageForDevice;
}

cudaError_t launch_recall(const RecallParams& params, RainfusionDtype dtype, int capability,
                          cudaStream_t stream) {
  const bool half = dtype == RAINFUSION_FLOAT16;
#ifdef RAINFUSION_SM90
  if (capability == 90) {
    return half ? sm90::launch_recall<__half>(params, stream)
                : sm90::launch_recall<__nv_bfloat16>(params, stream);
  }
#else
  static_cast<void>(capability);
#endif
  return half ? sm80::launch_recall<__half>(params, stream)
              : sm80::launch_recall<__nv_bfloat16>(params, stream);
}

}  // namespace rainfusion
