// The product q k^T of a warpgroup, or of one of its warps.
#pragma once

#include "common/element.h"
#include "common/ptx.cuh"
#include "sm90/wgmma.cuh"

namespace rainfusion::sm90 {

// s = q k^T of 64 rows of a query tile, which begin at address `q`, and a key tile at `k`; running
// on return.
template <typename Element, typename Queries, typename Keys>
__device__ __forceinline__ void start_scores(float (&s)[Keys::kRows / 2], uint32_t q, uint32_t k) {
  constexpr int kSteps = Keys::kRowBytes / kStepBytes;  // of a column
  const uint64_t q_operand = descriptor<Queries::kRowBytes>(q);
  const uint64_t k_operand = descriptor<Keys::kRowBytes>(k);
  pin_registers(s);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps * Keys::kColumns; ++step) {
    const int column = step / kSteps;
    const uint32_t offset = step % kSteps * kStepBytes;
    multiply_keys<Element>(s, advance(q_operand, column * Queries::kColumnBytes + offset),
                           advance(k_operand, column * Keys::kColumnBytes + offset), step > 0);
  }
  wgmma_commit();
  pin_registers(s);
}

// The same for a warp alone, whose 16 rows of the query tile begin at `first_row`: s lies in its
// registers as start_scores leaves it.
template <typename Element, typename Queries, typename Keys>
__device__ __forceinline__ void compute_warp_scores(float (&s)[Keys::kRows / 2], uint32_t q,
                                                    uint32_t k, int first_row) {
  int lane;  // read here, so that no address is kept in registers through the caller's loop
  asm volatile("mov.u32 %0, %%laneid;\n" : "=r"(lane));
#pragma unroll
  for (float& score : s) score = 0.f;
#pragma unroll 1
  for (int chunk = 0; chunk < Keys::kChunks; chunk += 2) {
    uint32_t a[4];
    load_matrices(a, q + Queries::offset(first_row + lane % 16, chunk + lane / 16));
#pragma unroll
    for (int keys = 0; keys < Keys::kRows; keys += 16) {
      uint32_t b[4];
      const int row = keys + lane / 16 * 8 + lane % 8;
      load_matrices(b, k + Keys::offset(row, chunk + lane / 8 % 2));
      multiply_accumulate<Element>(reinterpret_cast<float (&)[4]>(s[keys / 2]), a, b[0], b[1]);
      multiply_accumulate<Element>(reinterpret_cast<float (&)[4]>(s[keys / 2 + 4]), a, b[2], b[3]);
    }
  }
}

}  // namespace rainfusion::sm90
