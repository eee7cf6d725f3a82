#include "sm80/attention.cuh"

namespace rainfusion {

template cudaError_t launch_attention_sm80<__nv_bfloat16, 64, 1>(const AttentionParams&,
                                                                 cudaStream_t);

}  // namespace rainfusion
