// Rows of a window to tokens, without a division.
#pragma once

#include <cuda_runtime.h>

#include "common/divisor.h"
#include "common/windows.h"

namespace rainfusion::sm80 {

// Rows of a window in the order of its raster, or of a run of tokens, to tokens.
struct BoxRows {
  int first;       // token of row 0
  int line_skip;   // tokens from the end of a line of the window to the begin of the next
  int frame_skip;  // and what is to be added from frame to frame
  Divisor line;    // row -> line
  Divisor frame;   // line -> frame

  static __device__ __forceinline__ BoxRows run() { return {0, 0, 0, {0}, {0}}; }

  __device__ __forceinline__ int token(int row) const {
    const int lines = line.divide(row);
    return first + row + lines * line_skip + frame.divide(lines) * frame_skip;
  }
};

// A WindowCut with what BoxRows needs: of whole windows, and of those that are the last of a row,
// or of a column.
struct FastCut {
  WindowCut cut;
  Divisor line[2];
  Divisor frame[2];
  Divisor row;     // window -> row of windows
  Divisor column;  // row of windows -> frame of windows

  explicit FastCut(const WindowCut& cut_) : cut(cut_) {
    const Extents& box = cut.box;
    line[0] = Divisor::of(box.w);
    line[1] = Divisor::of(cut.grid.w - (cut.counts.w - 1) * box.w);
    frame[0] = Divisor::of(box.h);
    frame[1] = Divisor::of(cut.grid.h - (cut.counts.h - 1) * box.h);
    row = Divisor::of(cut.counts.w);
    column = Divisor::of(cut.counts.h);
  }

  // The same as cut.origin(window), for fewer than 2^15 windows.
  __device__ __forceinline__ Extents origin(int window) const {
    const int rows = row.divide(window);
    const int frames = column.divide(rows);
    return {frames * cut.box.t, (rows - frames * cut.counts.h) * cut.box.h,
            (window - rows * cut.counts.w) * cut.box.w};
  }

  // Whether a window's rows are numbered as in a whole box: it is cut off at frames at most.
  __device__ __forceinline__ bool has_whole_frames(const Extents& at) const {
    return at.h + cut.box.h <= cut.grid.h && at.w + cut.box.w <= cut.grid.w;
  }

  __device__ __forceinline__ BoxRows rows(const Extents& at) const {
    const Extents size = cut.clipped(at);
    const bool last_column = at.w + cut.box.w >= cut.grid.w;
    const bool last_row = at.h + cut.box.h >= cut.grid.h;
    return {cut.token(at.t, at.h, at.w), cut.grid.w - size.w, (cut.grid.h - size.h) * cut.grid.w,
            line[last_column], frame[last_row]};
  }
};

}  // namespace rainfusion::sm80
