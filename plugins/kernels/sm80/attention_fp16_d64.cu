#include "sm80/attention.cuh"

namespace rainfusion::sm80 {

template cudaError_t launch_attention<__half, 64, 1>(const AttentionParams&, cudaStream_t);

}  // namespace rainfusion::sm80
