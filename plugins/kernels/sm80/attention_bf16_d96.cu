#include "sm80/attention.cuh"

namespace rainfusion::sm80 {

template cudaError_t launch_attention<__nv_bfloat16, 96, 1>(const AttentionParams&, cudaStream_t);
template cudaError_t launch_attention<__nv_bfloat16, 96, 2>(const AttentionParams&, cudaStream_t);

}  // namespace rainfusion::sm80
