#include "sm90/attention.cuh"

namespace rainfusion {

template cudaError_t launch_attention_sm90<__half, 64>(const AttentionParams&, cudaStream_t);

}  // namespace rainfusion
