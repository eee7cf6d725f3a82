#include "attention.cuh"

template cudaError_t rainfusion::launch_attention_sm80<__nv_bfloat16, 64>(const AttentionParams&,
                                                                    cudaStream_t);
