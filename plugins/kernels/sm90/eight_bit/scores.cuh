// The product q k^T of 8-bit integers, of a warpgroup.
#pragma once

#include "sm90/wgmma.cuh"

namespace rainfusion::sm90 {

// s += q k^T of 64 rows of a query tile, which begin at address `q`, and a key tile at `k`; running
// on return.
template <int kHeadSize, int kScores>
__device__ __forceinline__ void start_integer_scores(int32_t (&s)[kScores], uint32_t q,
                                                     uint32_t k) {
  const uint64_t q_operand = descriptor<kHeadSize>(q);
  const uint64_t k_operand = descriptor<kHeadSize>(k);
  pin_registers(s);
  wgmma_fence();
#pragma unroll
  for (int offset = 0; offset < kHeadSize; offset += kStepBytes) {
    multiply_integer_keys(s, advance(q_operand, offset), advance(k_operand, offset));
  }
  wgmma_commit();
  pin_registers(s);
}

}  // namespace rainfusion::sm90
