#include "attention.cuh"

template cudaError_t rainfusion::launch_attention_sm80<__half, 96>(const AttentionParams&,
                                                             cudaStream_t);
