#include "sm90/attention.cuh"

namespace rainfusion::sm90 {

template cudaError_t launch_attention<__half, 96>(const AttentionParams&, cudaStream_t);

}  // namespace rainfusion::sm90
