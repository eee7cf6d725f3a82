// Online softmax of score tiles held as tensor-core accumulators.
#pragma once

#include "sm80/tile.cuh"

namespace rainfusion::sm80 {

// How far (in powers of two) scores may pass a row's reference before it is moved. Probabilities up
// to 2^8 keep their relative precision in 16 bits, and rescaling the accumulators becomes rare.
constexpr float kRescaleSlack = 8.f;

// Per thread: its rows r = 0..3 are warp row r * 8 + lane / 4.
struct RowStatistics {
  float maximum[kWarpTiles * 2];  // reference of the exponentials, not always the largest score
  float sum[kWarpTiles * 2];      // this thread's columns only

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int r = 0; r < kWarpTiles * 2; ++r) {
      maximum[r] = -INFINITY;
      sum[r] = 0.f;
    }
  }
};

// Largest score of each row of the tile, in all four lanes of the row.
template <int kTileN>
__device__ __forceinline__ void row_maxima(const Scores<kTileN>& s,
                                           float (&maxima)[kWarpTiles * 2]) {
#pragma unroll
  for (int r = 0; r < kWarpTiles * 2; ++r) {
    float largest = s[r / 2][0][r % 2 * 2];
#pragma unroll
    for (int n = 0; n < kTileN / 8; ++n) {
      largest = fmaxf(largest, fmaxf(s[r / 2][n][r % 2 * 2], s[r / 2][n][r % 2 * 2 + 1]));
    }
    maxima[r] = quad_max(largest);
  }
}

// Whether any row of the warp passed its reference by more than the slack.
__device__ __forceinline__ bool must_rescale(const RowStatistics& statistics,
                                             const float (&maxima)[kWarpTiles * 2],
                                             float scale_log2) {
  bool grown = false;
#pragma unroll
  for (int r = 0; r < kWarpTiles * 2; ++r) {
    grown |= (maxima[r] - statistics.maximum[r]) * scale_log2 > kRescaleSlack;
  }
  return __any_sync(0xffffffffu, grown);
}

// Scores become exponentials; o and the row sums follow the rows' references. The tile holds at
// least one key, so that every row has a finite maximum.
template <int kTileN, int kHeadSize>
__device__ __forceinline__ void softmax_tile(Scores<kTileN>& s,
                                             float (&o)[kWarpTiles][kHeadSize / 8][4],
                                             RowStatistics& statistics, float scale_log2) {
  float maxima[kWarpTiles * 2];
  row_maxima<kTileN>(s, maxima);
  if (must_rescale(statistics, maxima, scale_log2)) {
#pragma unroll
    for (int r = 0; r < kWarpTiles * 2; ++r) {
      const float larger = fmaxf(statistics.maximum[r], maxima[r]);
      const float factor = exp2_fast((statistics.maximum[r] - larger) * scale_log2);
      statistics.maximum[r] = larger;
      statistics.sum[r] *= factor;
#pragma unroll
      for (int d = 0; d < kHeadSize / 8; ++d) {
        o[r / 2][d][r % 2 * 2] *= factor;
        o[r / 2][d][r % 2 * 2 + 1] *= factor;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kWarpTiles * 2; ++r) {
    const float reference = statistics.maximum[r] * scale_log2;
    float sum = 0.f;
#pragma unroll
    for (int n = 0; n < kTileN / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[r / 2][n][r % 2 * 2 + i];
        x = exp2_fast(fmaf(x, scale_log2, -reference));
        sum += x;
      }
    }
    statistics.sum[r] += sum;
  }
}

}  // namespace rainfusion::sm80
