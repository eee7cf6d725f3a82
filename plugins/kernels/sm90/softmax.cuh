// Online softmax of a warpgroup's scores: biases, and how references move in 16 bits.
#pragma once

#include "common/row_softmax.cuh"

namespace rainfusion::sm90 {

// A thread's sum of a row's exponentials of one tile, up to which each of them fits float16.
constexpr float kLargestHalfSum = 32768.f;

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
