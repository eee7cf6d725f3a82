// Online softmax of a warpgroup's scores, as wgmma leaves them in registers.
//
// A thread holds two rows of its warp's 16: row r is r * 8 + lane / 4. Of every 8 columns it holds
// columns lane % 4 * 2 and the next, of both rows: scores[n * 4 + r * 2 + i].
#pragma once

#include "../mma.cuh"
#include "../online_softmax.h"
#include "shared.cuh"

namespace rainfusion::sm90 {

constexpr int kRows = 2;

struct RowStatistics {
  float maximum[kRows] = {-INFINITY, -INFINITY};  // reference, not always the largest score
  float sum[kRows] = {0.f, 0.f};                  // this thread's columns only
};

// Scores of keys at or past `valid` become -infinity.
template <int kScores>
__device__ __forceinline__ void mask_scores(float (&s)[kScores], int valid) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    if (i / 4 * 8 + column + i % 2 >= valid) s[i] = -INFINITY;
  }
}

// Scores become exponentials and join the sums. Where a reference moves, `factor` says by how much
// the accumulators shrink. Returns whether any of the warp's did. A row's first tile holds a valid
// key.
template <int kScores>
__device__ __forceinline__ bool softmax_tile(float (&s)[kScores], RowStatistics& rows,
                                             float scale_log2, float (&factor)[kRows]) {
  float largest[kRows];
  bool grown = false;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float chain[4];  // several, because a comparison waits for the one before it in its chain
#pragma unroll
    for (int n = 0; n < kScores / 4; ++n) {
      const float larger = fmaxf(s[n * 4 + r * 2], s[n * 4 + r * 2 + 1]);
      chain[n % 4] = n < 4 ? larger : fmaxf(chain[n % 4], larger);
    }
    largest[r] = quad_max(fmaxf(fmaxf(chain[0], chain[1]), fmaxf(chain[2], chain[3])));
    grown |= (largest[r] - rows.maximum[r]) * scale_log2 > kRescaleSlack;
  }
  const bool rescale = __any_sync(0xffffffffu, grown);
  if (rescale) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float larger = fmaxf(rows.maximum[r], largest[r]);
      factor[r] = exp2_fast((rows.maximum[r] - larger) * scale_log2);
      rows.maximum[r] = larger;
      rows.sum[r] *= factor[r];
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float reference = rows.maximum[r] * scale_log2;
    float sum[2] = {0.f, 0.f};
#pragma unroll
    for (int n = 0; n < kScores / 4; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[n * 4 + r * 2 + i];
        x = exp2_fast(fmaf(x, scale_log2, -reference));
        sum[i] += x;
      }
    }
    rows.sum[r] += sum[0] + sum[1];
  }
  return rescale;
}

}  // namespace rainfusion::sm90
