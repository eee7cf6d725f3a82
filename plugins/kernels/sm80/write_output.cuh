// The end of a query block: accumulators to out and lse.
#pragma once

#include "sm80/key_value_copy.cuh"
#include "sm80/softmax.cuh"

namespace rainfusion::sm80 {

// Divides the accumulators by the row sums and packs them into the warp's rows of a tile.
template <typename Element, int kHeadSize>
__device__ __forceinline__ void normalize(float (&o)[kWarpTiles][kHeadSize / 8][4],
                                          const float (&sums)[kWarpTiles * 2], char* tile) {
  using Shape = TileShape<Element, kHeadSize>;
  static_assert(ElementTraits<Element>::kPerChunk == 8, "a chunk has an accumulator's columns");
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < kWarpTiles * 2; ++r) {
    const int row = threadIdx.x / 32 * 32 + r * 8 + lane / 4;
    const float inverse = sums[r] > 0.f ? 1.f / sums[r] : 0.f;
#pragma unroll
    for (int d = 0; d < kHeadSize / 8; ++d) {
      const int column = r % 2 * 2;
      *reinterpret_cast<uint32_t*>(tile + Shape::offset(row, d) + lane % 4 * 4) =
          pack<Element>(o[r / 2][d][column] * inverse, o[r / 2][d][column + 1] * inverse);
    }
  }
}

// `tile` is the query tile: its rows are used up by the warp that owns them.
template <typename Element, int kHeadSize>
__device__ __forceinline__ void write_output(const AttentionParams& p, const QuerySpan& q,
                                             float (&o)[kWarpTiles][kHeadSize / 8][4],
                                             const RowStatistics& statistics, char* tile) {
  using Shape = TileShape<Element, kHeadSize>;
  constexpr int kBytes = ElementTraits<Element>::kBytes;
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 * 32;
  const int begin = q.begin;
  const int length = q.rows;
  float sums[kWarpTiles * 2];
#pragma unroll
  for (int r = 0; r < kWarpTiles * 2; ++r) {
    sums[r] = quad_sum(statistics.sum[r]);
    const int row = warp_row + r * 8 + lane / 4;
    if (p.lse != nullptr && lane % 4 == 0 && row < length) {
      const int64_t head = static_cast<int64_t>(q.batch) * p.heads + q.head;
      p.lse[head * p.q_cut.tokens + begin + row] =
          sums[r] > 0.f ? statistics.maximum[r] * p.softmax_scale + logf(sums[r]) : -INFINITY;
    }
  }
  normalize<Element, kHeadSize>(o, sums, tile);
  __syncwarp();
  char* out = static_cast<char*>(p.out) + head_offset<Element>(p.out_strides, q);
#pragma unroll
  for (int i = lane; i < 32 * Shape::kChunks; i += 32) {
    const int row = warp_row + i / Shape::kChunks;
    const int chunk = i % Shape::kChunks;
    if (row < length) {
      const int64_t token = begin + row;
      *reinterpret_cast<uint4*>(out + kBytes * token * p.out_strides.token + chunk * kChunkBytes) =
          *reinterpret_cast<const uint4*>(tile + Shape::offset(row, chunk));
    }
  }
}

}  // namespace rainfusion::sm80
