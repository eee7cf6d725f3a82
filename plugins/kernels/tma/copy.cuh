// A copy of the copy engine (TMA), which one lane issues.
#pragma once

#include <cuda.h>

#include "tma/barrier.cuh"

namespace rainfusion::tma {

// The box of a map of five dimensions at (a, b, c, d, e) to `tile`; its bytes arrive at `full`.
__device__ __forceinline__ void copy_box_of_map(const CUtensorMap& map, void* tile, Barrier& full,
                                                int a, int b, int c, int d, int e) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];\n" ::"r"(shared_address(tile)),
      "l"(&map), "r"(shared_address(&full)), "r"(a), "r"(b), "r"(c), "r"(d), "r"(e)
      : "memory");
}

}  // namespace rainfusion::tma
