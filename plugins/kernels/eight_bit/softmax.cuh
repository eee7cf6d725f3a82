// Online softmax of integer scores, which are floats from kScoreOrigin on, and probabilities that
// fit e4m3. References move as in sm90/softmax.cuh.
#pragma once

#include "common/eight_bit.h"
#include "common/row_softmax.cuh"

namespace rainfusion::eight_bit {

// Windows seldom have all keys of a tile, and seldom lack more: then few scores are looked at.
constexpr int kShortBy = 32;

// Scores of what is no key, of a tile that has `keys`, become -infinity.
template <int kScores>
__device__ __forceinline__ void mask_short_tile(float (&s)[kScores], int keys) {
  constexpr int kKeys = kScores * 2;
  if (keys >= kKeys - kShortBy) {
    mask_scores<kKeys - kShortBy>(s, keys);
  } else {
    mask_scores(s, keys);
  }
}

// Pseudo-keys get their biases, to base 2, in units of scores.
template <int kScores>
__device__ __forceinline__ void add_pseudo_biases(float (&s)[kScores], const float* shared_biases,
                                                  const float (&scale)[kRows]) {
  const float inverse[kRows] = {__fdividef(1.f, scale[0]), __fdividef(1.f, scale[1])};
  const float2* biases = reinterpret_cast<const float2*>(shared_biases) + threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < kScores / 4; ++n) {
    const float2 bias = biases[n * 4];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      s[n * 4 + r * 2] = fmaf(bias.x, inverse[r], s[n * 4 + r * 2]);
      s[n * 4 + r * 2 + 1] = fmaf(bias.y, inverse[r], s[n * 4 + r * 2 + 1]);
    }
  }
}

// Exponentials of row r under its reference, to base 2. A key tile's scores have a scale of their
// own. Where a score would need more than 22 bits beside its origin, rounding is some thousandths
// of what the integers' own rounding makes of it.
template <int kScores>
__device__ __forceinline__ float integer_exponentials(float (&s)[kScores], int r, float reference,
                                                      float scale) {
  return exponentials(s, r, fmaf(kScoreOrigin, scale, reference), scale);
}

// As softmax_from_maxima: the largest exponential of a row becomes 2^kPeak, or is less.
template <int kScores>
__device__ __forceinline__ void integer_softmax_from_maxima(float (&s)[kScores],
                                                            RowStatistics& rows,
                                                            const float (&scale)[kRows],
                                                            float (&factor)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float largest = (row_maximum(s, r) - kScoreOrigin) * scale[r];
    const float reference = fmaxf(rows.reference[r], largest - kPeak);
    factor[r] = exp2_fast(rows.reference[r] - reference);
    rows.reference[r] = reference;
    rows.sum[r] = rows.sum[r] * factor[r] + integer_exponentials(s, r, reference, scale[r]);
  }
}

// The power of two at or below a normal float.
__device__ __forceinline__ float power_of_two_below(float x) {
  return __uint_as_float(__float_as_uint(x) & 0x7f800000u);
}

// References move up until a row's largest exponential of this tile is a power of two, which e4m3
// has: the heaviest key is not rounded. Of those it is the one that leaves the larger sums above
// half of kUsualSum.
template <int kScores>
__device__ __forceinline__ void lower_to_usual(float (&s)[kScores], const float (&sum)[kRows],
                                               RowStatistics& rows, float (&factor)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float larger_sum = quad_max(sum[r]);
    const float largest = row_maximum(s, r);
    const float usual = power_of_two_below(largest * __fdividef(kUsualSum, larger_sum));
    const float excess = larger_sum > kLargestSum ? __fdividef(largest, usual) : 1.f;
    const float reference = rows.reference[r] + __log2f(excess);
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

// As softmax_tile: no exponential is above kLargestSum, which e4m3 has.
template <int kScores, typename ComputeScores>
__device__ __forceinline__ bool integer_softmax_tile(float (&s)[kScores], RowStatistics& rows,
                                                     const float (&scale)[kRows],
                                                     float (&factor)[kRows],
                                                     ComputeScores compute_scores) {
  float sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sum[r] = integer_exponentials(s, r, rows.reference[r], scale[r]);
  }
  const auto within = [&](float limit) {  // false for NaN
    return __all_sync(0xffffffffu, sum[0] <= limit && sum[1] <= limit);
  };
  const bool moved = !within(kLargestSum);
  if (moved && !within(kLargestFloatSum)) {
    compute_scores();
    integer_softmax_from_maxima(s, rows, scale, factor);
    return true;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows.sum[r] += sum[r];
  if (moved) lower_to_usual(s, sum, rows, factor);
  return moved;
}

// Four probabilities as e4m3, the first in the lowest byte.
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
  uint32_t packed;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}\n"
      : "=r"(packed)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return packed;
}

// Probabilities as the next product takes them.
template <int kScores>
__device__ __forceinline__ void pack_e4m3(const float (&s)[kScores],
                                          uint32_t (&p)[kScores / 16][4]) {
#pragma unroll
  for (int step = 0; step < kScores / 16; ++step) {
    const float* own = s + step * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[step][i] = pack_e4m3(own[packed_score(i, 0)], own[packed_score(i, 1)],
                             own[packed_score(i, 2)], own[packed_score(i, 3)]);
    }
  }
}

}  // namespace rainfusion::eight_bit
