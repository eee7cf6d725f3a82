// The product q k^T of a warpgroup.
#pragma once

#include "shared.cuh"
#include "wgmma.cuh"

namespace rainfusion::sm90 {

// s = q k^T of 64 rows of a query tile, which begin at address `q`, and a key tile at `k`; running
// on return.
template <typename Element, typename Queries, typename Keys>
__device__ __forceinline__ void start_scores(float (&s)[Keys::kRows / 2], uint32_t q, uint32_t k) {
  constexpr int kSteps = Keys::kColumnElements / 16;
  const uint64_t q_operand = descriptor<Queries::kRowBytes>(q);
  const uint64_t k_operand = descriptor<Keys::kRowBytes>(k);
  pin_registers(s);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < Keys::kHeadSize / 16; ++step) {
    const int column = step / kSteps;
    const uint32_t offset = step % kSteps * 32;
    multiply_keys<Element>(s, advance(q_operand, column * Queries::kColumnBytes + offset),
                           advance(k_operand, column * Keys::kColumnBytes + offset), step > 0);
  }
  wgmma_commit();
  pin_registers(s);
}

}  // namespace rainfusion::sm90
