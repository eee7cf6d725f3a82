// The rows of a warp's scores, as wgmma and mma.sync leave them in registers: what every online
// softmax of them is made of.
//
// A thread holds two rows of its warp's 16: row r is r * 8 + lane / 4. Of every 8 columns it holds
// columns lane % 4 * 2 and the next, of both rows: scores[n * 4 + r * 2 + i].
#pragma once

#include "common/ptx.cuh"

namespace rainfusion {

constexpr int kRows = 2;

// A thread's sum of a row's exponentials of one tile, up to which float32 holds them and what they
// are added to, with its inverse.
constexpr float kLargestFloatSum = 1e30f;

struct RowStatistics {
  float reference[kRows] = {-INFINITY, -INFINITY};  // of the exponentials, a logarithm of base 2
  float sum[kRows] = {0.f, 0.f};                    // this thread's columns only
};

// Scores of keys at or past `valid` become -infinity. It is at least kFirst, a multiple of 8.
template <int kFirst = 0, int kScores>
__device__ __forceinline__ void mask_scores(float (&s)[kScores], int valid) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = kFirst / 2; i < kScores; ++i) {
    if (i / 4 * 8 + column + i % 2 >= valid) s[i] = -INFINITY;
  }
}

template <int kScores>
__device__ __forceinline__ float row_maximum(const float (&s)[kScores], int r) {
  float chain[4];  // several, because a comparison waits for the one before it in its chain
#pragma unroll
  for (int n = 0; n < kScores / 4; ++n) {
    const float larger = fmaxf(s[n * 4 + r * 2], s[n * 4 + r * 2 + 1]);
    chain[n % 4] = n < 4 ? larger : fmaxf(chain[n % 4], larger);
  }
  return quad_max(fmaxf(fmaxf(chain[0], chain[1]), fmaxf(chain[2], chain[3])));
}

// Scores of a row become exponentials. Returns the sum of this thread's.
template <int kScores>
__device__ __forceinline__ float exponentials(float (&s)[kScores], int r, float reference,
                                              float scale_log2) {
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
  return sum[0] + sum[1];
}

}  // namespace rainfusion
