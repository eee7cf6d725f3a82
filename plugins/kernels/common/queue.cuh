// The queue of query blocks from which persistent attention kernels take their work: a counter in
// the workspace. plan/decide.cu, which comes before attention in every call, resets it;
// tma/producer.cuh takes from it.
#pragma once

#include <cuda_runtime.h>

namespace rainfusion {

__device__ __forceinline__ void reset_queue(int32_t* next_item) { *next_item = 0; }

__device__ __forceinline__ int take_item(int32_t* next_item) { return atomicAdd(next_item, 1); }

}  // namespace rainfusion
