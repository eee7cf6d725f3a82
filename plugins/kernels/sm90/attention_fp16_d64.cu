#include "sm90/attention.cuh"

namespace rainfusion::sm90 {

template cudaError_t launch_attention<__half, 64>(const AttentionParams&, cudaStream_t);

}  // namespace rainfusion::sm90
