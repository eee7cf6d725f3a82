#include "attention.cuh"

template cudaError_t rainfusion::launch_attention_sm80<__half, 128>(const AttentionParams&,
                                                              cudaStream_t);
