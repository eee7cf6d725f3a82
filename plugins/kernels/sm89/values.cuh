// The product p v of e4m3, of a warp.
#pragma once

#include "common/eight_bit.h"
#include "common/ptx.cuh"
#include "common/row_softmax.cuh"

namespace rainfusion::sm89 {

// c += a * b for a 16 x 32 (row) and b 32 x 8 (column), e4m3, float32 accumulators.
__device__ __forceinline__ void multiply_accumulate(float (&c)[4], const uint32_t (&a)[4],
                                                    uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// o = factor o + p v of a tile of values at address `v`. Tensor cores keep few bits of a sum of
// e4m3 products, so that a tile's is added up apart, and joins the others in float32.
template <int kOutputs, int kSteps>
__device__ __forceinline__ void multiply_values(float (&o)[kOutputs],
                                                const uint32_t (&p)[kSteps][4], uint32_t v,
                                                const float (&factor)[kRows]) {
  using namespace eight_bit;
  constexpr int kHeadSize = kOutputs * 2;
  int lane;  // read here, so that no address is kept in registers through the caller's loop
  asm volatile("mov.u32 %0, %%laneid;\n" : "=r"(lane));
#pragma unroll
  for (int channels = 0; channels < kHeadSize; channels += 16) {
    float sum[2][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t b[4];
      load_matrices(
          b, v + value_row_offset(kHeadSize, step, lane_row_b(channels, lane), lane_chunk_b(lane)));
      multiply_accumulate(sum[0], p[step], b[0], b[1]);
      multiply_accumulate(sum[1], p[step], b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& output = o[channels / 2 + i];
      output = fmaf(output, factor[i % 4 / 2], sum[i / 4][i % 4]);
    }
  }
}

}  // namespace rainfusion::sm89
