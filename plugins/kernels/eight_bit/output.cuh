// The end of a query block in 8 bits: accumulators to out and lse, straight from registers.
#pragma once

#include "common/element.h"
#include "common/query_items.cuh"
#include "common/row_softmax.cuh"

namespace rainfusion::eight_bit {

// What of a query window's box lies in the grid.
__device__ __forceinline__ Extents inside(int rows) {
  return {rows >> 16 & 0x7fff, rows >> 8 & 0xff, rows & 0xff};
}

// Rows that hold a token: the first ones.
__device__ __forceinline__ int rows_of(const Work& work) {
  return WindowRows::is_window(work.rows) ? inside(work.rows).volume() : work.rows;
}

// The token in a row of the block, -1 if there is none.
__device__ __forceinline__ int token_of(const AttentionParams& p, const Work& work, int row) {
  if (row >= rows_of(work)) return -1;
  if (!WindowRows::is_window(work.rows)) return work.begin + row;
  const Extents size = inside(work.rows);
  const Extents& grid = p.q_windows.grid;
  const int line = row / size.w;
  return work.begin + (line / size.h * grid.h + line % size.h) * grid.w + row % size.w;
}

// Lanes hold two columns of each of two neighbouring chunks of eight. An even lane gets four
// columns of the first, an odd one of the second.
__device__ __forceinline__ uint2 four_columns(uint32_t first, uint32_t second) {
  const bool odd = threadIdx.x % 2 != 0;
  const uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
  return odd ? uint2{received, second} : uint2{first, received};
}

// Scaled and moved back. `work.head` counts the heads of all batch elements; `warp_row` is the
// first of the warp's 16 rows in the block.
template <typename Element, int kOutputs>
__device__ __forceinline__ void write_output(const EightBitParams& params, const Work& work,
                                             int warp_row, const float (&o)[kOutputs],
                                             const RowStatistics& rows) {
  constexpr int kHeadSize = kOutputs * 2;
  const AttentionParams& p = params.attention;
  const int lane = threadIdx.x % 32;
  const int first_row = warp_row + lane / 4;
  const RainfusionStrides& strides = p.out_strides;
  constexpr int kBytes = ElementTraits<Element>::kBytes;
  static_assert(kBytes == 2, "two columns are packed into 32 bits");
  char* out = static_cast<char*>(p.out) +
              kBytes * (work.head / p.heads * strides.batch + work.head % p.heads * strides.head);
  const float* centres =
      params.tiles.centres + static_cast<int64_t>(work.head) * kCentres * kHeadSize + lane % 4 * 2;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = quad_sum(rows.sum[r]);
    const float real = sum != 0.f ? 1.f : 0.f;  // a row without keys is 0
    const float inverse = sum != 0.f ? __fdividef(1.f, sum) : 0.f;
    const int64_t token = token_of(p, work, first_row + r * 8);
    auto* out_row = reinterpret_cast<uint2*>(out + kBytes * token * strides.token) + lane % 2 * 2 +
                    lane % 4 / 2;
#pragma unroll
    for (int n = 0; n < kHeadSize / 8; n += 2) {
      uint32_t pairs[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto at = [&](int which) {
          return __ldg(reinterpret_cast<const float2*>(centres + which * kHeadSize + (n + i) * 8));
        };
        const float2 scale = at(kValueScale);
        const float2 centre = at(kOutputCentre);
        const int place = (n + i) * 4 + r * 2;
        pairs[i] = pack<Element>(fmaf(o[place] * inverse, scale.x, centre.x * real),
                                 fmaf(o[place + 1] * inverse, scale.y, centre.y * real));
      }
      const uint2 columns = four_columns(pairs[0], pairs[1]);
      if (token >= 0) out_row[n / 2 * 4] = columns;
    }
    if (token >= 0 && p.lse != nullptr && lane % 4 == 0) {
      const int64_t place = static_cast<int64_t>(work.head) * p.q_cut.tokens + token;
      p.lse[place] = sum > 0.f
                         ? rows.reference[r] / kLog2E + logf(sum) + params.tiles.lse_shift[place]
                         : -INFINITY;
    }
  }
}

}  // namespace rainfusion::eight_bit
