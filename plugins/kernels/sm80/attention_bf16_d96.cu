#include "sm80/attention.cuh"

namespace rainfusion {

template cudaError_t launch_attention_sm80<__nv_bfloat16, 96, 1>(const AttentionParams&,
                                                                 cudaStream_t);
template cudaError_t launch_attention_sm80<__nv_bfloat16, 96, 2>(const AttentionParams&,
                                                                 cudaStream_t);

}  // namespace rainfusion
