// The checkerboard of textural heads: every `stride`-th key of a row, shifted by one from row to
// row.
#pragma once

#include "common/geometry.h"

namespace rainfusion {

// Checkerboard keys have (y - x) % stride == 0. Number of them in rows [0, y) of a frame: each
// `stride` consecutive rows hold every column once.
RAINFUSION_HOST_DEVICE constexpr int64_t checkerboard_before_row(int64_t y, int64_t width,
                                                                 int64_t stride) {
  const int64_t rest = y % stride;
  return y / stride * width + width / stride * rest + min64(width % stride, rest);
}

RAINFUSION_HOST_DEVICE constexpr int64_t checkerboard_per_frame(const TokenLayout& layout,
                                                                int64_t stride) {
  return checkerboard_before_row(layout.frame / layout.width, layout.width, stride);
}

// Checkerboard keys among all non-sink tokens.
RAINFUSION_HOST_DEVICE constexpr int64_t checkerboard_keys(const TokenLayout& layout,
                                                           int64_t stride) {
  return layout.free_frames * checkerboard_per_frame(layout, stride);
}

// And those of them below raster index `a`.
RAINFUSION_HOST_DEVICE constexpr int64_t checkerboard_below(const TokenLayout& layout,
                                                            int64_t stride, int64_t a) {
  const int64_t place = a % layout.frame;
  const int64_t y = place / layout.width;
  const int64_t x = place % layout.width;
  const int64_t first = y % stride;  // column of the row's first key
  return a / layout.frame * checkerboard_per_frame(layout, stride) +
         checkerboard_before_row(y, layout.width, stride) +
         (x > first ? ceil_div(x - first, stride) : 0);
}

// Raster index of checkerboard key `index`; they ascend with the index.
RAINFUSION_HOST_DEVICE constexpr int64_t checkerboard_raster(const TokenLayout& layout,
                                                             int64_t stride, int64_t index) {
  // `stride` rows hold `width` keys: row r of such a group the columns r, r + stride, ...; the
  // first width % stride rows hold one key more than the others.
  const int64_t per_frame = checkerboard_per_frame(layout, stride);
  const int64_t in_frame = index % per_frame;
  const int64_t in_group = in_frame % layout.width;
  const int64_t shorter = layout.width / stride;
  const int64_t longer_rows = layout.width % stride;
  const int64_t in_longer = longer_rows * (shorter + 1);
  int64_t row = 0;
  int64_t column = 0;
  if (in_group < in_longer) {
    row = in_group / (shorter + 1);
    column = row + in_group % (shorter + 1) * stride;
  } else {
    row = longer_rows + (in_group - in_longer) / shorter;
    column = row + (in_group - in_longer) % shorter * stride;
  }
  const int64_t y = in_frame / layout.width * stride + row;
  return index / per_frame * layout.frame + y * layout.width + column;
}

}  // namespace rainfusion
