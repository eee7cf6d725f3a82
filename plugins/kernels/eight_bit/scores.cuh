// The product q k^T of 8-bit integers, of a warp.
#pragma once

#include "common/eight_bit.h"
#include "common/element.h"
#include "common/ptx.cuh"

namespace rainfusion::eight_bit {

// Scores begin with what makes floats of their bits.
template <int kScores>
__device__ __forceinline__ void begin_scores(int32_t (&s)[kScores]) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {  // an instruction each: one constant would be copied twice
    asm volatile("mov.b32 %0, %1;\n" : "=r"(s[i]) : "n"(kScoreOriginBits));
  }
}

template <int kScores>
__device__ __forceinline__ void scores_as_floats(const int32_t (&bits)[kScores],
                                                 float (&s)[kScores]) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) s[i] = __int_as_float(bits[i]);
}

// c += a * b for a 16 x 32 (row) and b 32 x 8 (column), integers.
__device__ __forceinline__ void multiply_accumulate(int32_t (&c)[4], const uint32_t (&a)[4],
                                                    uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// s = q k^T of a warp, whose 16 rows of the query tile at address `q` begin at `first_row`, and the
// key tile at `k`. kUnrolled steps of 32 channels are written out: few where it is seldom done.
template <int kHeadSize, int kUnrolled, int kScores>
__device__ __forceinline__ void compute_warp_integer_scores(int32_t (&s)[kScores], uint32_t q,
                                                            uint32_t k, int first_row) {
  constexpr int kKeys = kScores * 2;
  int lane;  // read here, so that no address is kept in registers through the caller's loop
  asm volatile("mov.u32 %0, %%laneid;\n" : "=r"(lane));
  begin_scores(s);
#pragma unroll kUnrolled
  for (int chunk = 0; chunk < kHeadSize / kChunkBytes; chunk += 2) {
    uint32_t a[4];
    load_matrices(
        a, q + row_offset(kHeadSize, lane_row_a(first_row, lane), chunk + lane_chunk_a(lane)));
#pragma unroll
    for (int keys = 0; keys < kKeys; keys += 16) {
      uint32_t b[4];
      const int row = lane_row_b(keys, lane);
      load_matrices(b, k + row_offset(kHeadSize, row, chunk + lane_chunk_b(lane)));
      multiply_accumulate(reinterpret_cast<int32_t (&)[4]>(s[keys / 2]), a, b[0], b[1]);
      multiply_accumulate(reinterpret_cast<int32_t (&)[4]>(s[keys / 2 + 4]), a, b[2], b[3]);
    }
  }
}

}  // namespace rainfusion::eight_bit
