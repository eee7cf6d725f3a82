// What a sparsity means in whole numbers: bands, strides, kept blocks. One rounding, so that host,
// device and the Python reference agree.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define RAINFUSION_HOST_DEVICE __host__ __device__
#else
#define RAINFUSION_HOST_DEVICE
#endif

namespace rainfusion {

constexpr int64_t kBandUnit = 1000000;  // bands are integers in millionths

RAINFUSION_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
RAINFUSION_HOST_DEVICE constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
RAINFUSION_HOST_DEVICE constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Band b = 1 - sqrt(s) in millionths.
RAINFUSION_HOST_DEVICE inline int64_t band_of(float sparsity) {
  const double band = 1.0 - sqrt(static_cast<double>(sparsity));
  return static_cast<int64_t>(rint(band * static_cast<double>(kBandUnit)));
}

// Stride tau = max(2, round(1 / (1 - s))), halves to even. s is a float32 whose 0.6 is not quite
// six tenths, so the quotient is cut to four decimals first: otherwise no half would ever occur.
RAINFUSION_HOST_DEVICE inline int64_t stride_of(float sparsity) {
  const double quotient = 1.0 / (1.0 - static_cast<double>(sparsity));
  return max64(2, static_cast<int64_t>(rint(rint(quotient * 1e4) / 1e4)));
}

// Key blocks that a query block of rainfusion2 selects: ceil(count * (1 - s)), with the share
// 1 - s in millionths for the same reason.
RAINFUSION_HOST_DEVICE inline int64_t kept_blocks(float sparsity, int64_t count) {
  const double share = (1.0 - static_cast<double>(sparsity)) * static_cast<double>(kBandUnit);
  return ceil_div(count * static_cast<int64_t>(rint(share)), kBandUnit);
}

// Sparsity as it is used: values of 1 and more act as the largest float below 1.
RAINFUSION_HOST_DEVICE inline float clamp_sparsity(float sparsity) {
  const float largest = 0.99999994f;  // 1 - 2^-24
  return sparsity < largest ? sparsity : largest;
}

// Number of integers d >= 0 with d < b * extent, at least 1: |x - y| < band_width is the mask.
RAINFUSION_HOST_DEVICE constexpr int64_t band_width(int64_t band, int64_t extent) {
  return max64(1, ceil_div(band * extent, kBandUnit));
}

}  // namespace rainfusion
