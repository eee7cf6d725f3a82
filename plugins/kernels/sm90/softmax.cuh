// Online softmax of a warpgroup's scores, as wgmma leaves them in registers.
//
// A thread holds two rows of its warp's 16: row r is r * 8 + lane / 4. Of every 8 columns it holds
// columns lane % 4 * 2 and the next, of both rows: scores[n * 4 + r * 2 + i].
#pragma once

#include "common/ptx.cuh"

namespace rainfusion::sm90 {

constexpr int kRows = 2;

// A thread's sum of a row's exponentials of one tile, up to which each of them fits float16; and up
// to which float32 holds them and what they are added to, with its inverse.
constexpr float kLargestHalfSum = 32768.f;
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

// Calls function(score, bias) for every score and the bias of its column.
template <int kScores, typename Function>
__device__ __forceinline__ void with_biases(float (&s)[kScores], const float* biases,
                                            const Function& function) {
  const float2* own = reinterpret_cast<const float2*>(biases) + threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < kScores / 4; ++n) {
    const float2 bias = own[n * 4];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      function(s[n * 4 + r * 2], bias.x);
      function(s[n * 4 + r * 2 + 1], bias.y);
    }
  }
}

// Adds the biases of columns whose keys are finite.
template <int kScores>
__device__ __forceinline__ void add_biases(float (&s)[kScores], const float* biases) {
  with_biases(s, biases, [](float& score, float bias) { score += bias; });
}

// Biases of -infinity replace scores, which may be NaN.
template <int kScores>
__device__ __forceinline__ void replace_biased(float (&s)[kScores], const float* biases) {
  with_biases(s, biases, [](float& score, float bias) {
    score = bias == -INFINITY ? -INFINITY : score + bias;
  });
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

// References move up to the largest scores, and the accumulators shrink by `factor`. Scores become
// exponentials and join the sums. A row's first tile holds a valid key.
template <int kScores>
__device__ __forceinline__ void softmax_from_maxima(float (&s)[kScores], RowStatistics& rows,
                                                    float scale_log2, float (&factor)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float reference = fmaxf(rows.reference[r], row_maximum(s, r) * scale_log2);
    factor[r] = exp2_fast(rows.reference[r] - reference);
    rows.reference[r] = reference;
    rows.sum[r] = rows.sum[r] * factor[r] + exponentials(s, r, reference, scale_log2);
  }
}

// References move up by as much as exponentials are larger than 1. The sums hold them already.
template <int kScores>
__device__ __forceinline__ void lower_exponentials(float (&s)[kScores], RowStatistics& rows,
                                                   float (&factor)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float reference = rows.reference[r] + __log2f(fmaxf(row_maximum(s, r), 1.f));
    factor[r] = exp2_fast(rows.reference[r] - reference);  // of the rounded reference
    rows.reference[r] = reference;
    rows.sum[r] *= factor[r];
#pragma unroll
    for (int n = 0; n < kScores / 4; ++n) {
      s[n * 4 + r * 2] *= factor[r];
      s[n * 4 + r * 2 + 1] *= factor[r];
    }
  }
}

// Softmax of a row's later tile, without looking for the largest score first: exponentials take the
// references as they are, and their sums tell whether they are too large for that. Where they have
// overflowed, `compute_scores` brings the scores back. Returns whether references of the warp have
// moved: only then is there a `factor`.
template <int kScores, typename ComputeScores>
__device__ __forceinline__ bool softmax_tile(float (&s)[kScores], RowStatistics& rows,
                                             float scale_log2, float (&factor)[kRows],
                                             ComputeScores compute_scores) {
  float sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) sum[r] = exponentials(s, r, rows.reference[r], scale_log2);
  const auto within = [&](float limit) {  // false for NaN
    return __all_sync(0xffffffffu, sum[0] <= limit && sum[1] <= limit);
  };
  const bool moved = !within(kLargestHalfSum);
  if (moved && !within(kLargestFloatSum)) {
    compute_scores();
    softmax_from_maxima(s, rows, scale_log2, factor);
    return true;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows.sum[r] += sum[r];
  if (moved) lower_exponentials(s, rows, factor);
  return moved;
}

}  // namespace rainfusion::sm90
