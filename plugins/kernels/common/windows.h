// Windows of method piecewise: the grid of non-sink tokens cut into boxes, sinks cut apart.
//
// The one definition for kernels, host and, through the tests, the Python reference.
// docs/rainfusion.md gives the rule in prose.
#pragma once

#include <cstdint>

#include "common/geometry.h"

namespace rainfusion {

constexpr int32_t kMaxWindowTokens = 1024;  // of a window that a problem asks for

// Frames, rows and columns: of a box, of a grid, or of a place in one.
struct Extents {
  int32_t t;
  int32_t h;
  int32_t w;

  RAINFUSION_HOST_DEVICE constexpr int32_t volume() const { return t * h * w; }
};

// Frames of a window at most: longer ones were not measured. With exact frames that are no sinks
// they are short, so that what holds one of them is a small part of the clip.
constexpr int32_t kMostFrames = 16;
constexpr int32_t kMostFramesBesideExact = 2;

constexpr int32_t most_frames(const TokenLayout& layout) {
  return layout.has_exact(layout.free_begin(), layout.free_end()) ? kMostFramesBesideExact
                                                                  : kMostFrames;
}

// The box of windows of at most `most` tokens and `frames` frames in a grid. Host code: a search
// over all boxes.
Extents window_shape(const Extents& grid, int32_t most, int32_t frames);

// At least as many windows as window_shape makes of any grid with these extents or less, and at
// most `tokens` tokens.
int64_t most_windows(const Extents& largest, int64_t tokens, int32_t most, int32_t frames);

// Blocks of piecewise in memory order: runs of the sinks before the first non-sink token, windows,
// runs of the sinks behind the last. No block holds both a sink and another token.
struct WindowCut {
  int32_t size = 0;        // tokens of a run, and of a window at most
  Extents box{};           // of a window; volume() <= size
  Extents grid{};          // of the non-sink tokens
  Extents counts{};        // windows along each axis
  int32_t free_begin = 0;  // tokens [free_begin, free_end) are no sinks
  int32_t free_end = 0;
  int32_t tokens = 0;
  int32_t leading_sinks = 0;   // blocks [0, leading_sinks) are runs of sinks
  int32_t trailing_sinks = 0;  // and so are the last `trailing_sinks` blocks
  int32_t blocks = 0;

  WindowCut() = default;  // of methods without windows
  WindowCut(const TokenLayout& layout, int32_t size);

  RAINFUSION_HOST_DEVICE constexpr int32_t windows() const { return counts.volume(); }
  RAINFUSION_HOST_DEVICE constexpr int32_t sinks() const { return leading_sinks + trailing_sinks; }
  RAINFUSION_HOST_DEVICE constexpr bool is_sink(int32_t block) const {
    return block < leading_sinks || block >= blocks - trailing_sinks;
  }

  // Tokens [begin, end) of a run.
  RAINFUSION_HOST_DEVICE constexpr int32_t run_begin(int32_t block) const {
    return block < leading_sinks ? block * size
                                 : free_end + (block - leading_sinks - windows()) * size;
  }
  RAINFUSION_HOST_DEVICE constexpr int32_t run_end(int32_t block) const {
    const int32_t limit = block < leading_sinks ? free_begin : tokens;
    const int32_t full = run_begin(block) + size;
    return full < limit ? full : limit;
  }

  // The run with a token that is a sink.
  RAINFUSION_HOST_DEVICE constexpr int32_t run_of(int32_t token) const {
    return token < free_begin ? token / size
                              : leading_sinks + windows() + (token - free_end) / size;
  }

  // The window with a place in the grid.
  RAINFUSION_HOST_DEVICE constexpr int32_t block_of(const Extents& at) const {
    return leading_sinks + (at.t / box.t * counts.h + at.h / box.h) * counts.w + at.w / box.w;
  }

  // First place of a window (block - leading_sinks) in the grid.
  RAINFUSION_HOST_DEVICE constexpr Extents origin(int32_t window) const {
    const int32_t row = window / counts.w;
    return Extents{row / counts.h * box.t, row % counts.h * box.h, window % counts.w * box.w};
  }

  // What of the box at a place lies in the grid.
  RAINFUSION_HOST_DEVICE constexpr Extents clipped(const Extents& origin) const {
    return Extents{smaller(box.t, grid.t - origin.t), smaller(box.h, grid.h - origin.h),
                   smaller(box.w, grid.w - origin.w)};
  }

  // Token of a place in the grid.
  RAINFUSION_HOST_DEVICE constexpr int32_t token(int32_t t, int32_t h, int32_t w) const {
    return free_begin + (t * grid.h + h) * grid.w + w;
  }

  // A row of the box, in raster order, as an offset from the box's origin.
  RAINFUSION_HOST_DEVICE constexpr Extents place(int32_t row) const {
    const int32_t line = row / box.w;
    return Extents{line / box.h, line % box.h, row % box.w};
  }

  // How many tokens of a window's box come before the place of `limit` in the raster. They are the
  // first of its own raster, whose order is that of the tokens.
  RAINFUSION_HOST_DEVICE constexpr int32_t count_before(const Extents& origin,
                                                        int32_t limit) const {
    const Extents size_ = clipped(origin);
    if (limit <= free_begin) return 0;
    if (limit >= free_end) return size_.volume();
    const int32_t place = limit - free_begin;
    const int32_t frame = grid.h * grid.w;
    const int32_t t = place / frame - origin.t;
    const int32_t h = place % frame / grid.w - origin.h;
    const int32_t w = place % grid.w - origin.w;
    if (t < 0) return 0;
    if (t >= size_.t) return size_.volume();
    const int32_t frames = t * size_.h * size_.w;
    if (h < 0) return frames;
    if (h >= size_.h) return frames + size_.h * size_.w;
    return frames + h * size_.w + (w < 0 ? 0 : smaller(w, size_.w));
  }

  // Tokens of a window below `limit`.
  RAINFUSION_HOST_DEVICE constexpr int32_t count_below(int32_t window, int32_t limit) const {
    return count_before(origin(window), limit);
  }

  // First token of a window, its lowest.
  RAINFUSION_HOST_DEVICE constexpr int32_t first_token(int32_t window) const {
    const Extents at = origin(window);
    return token(at.t, at.h, at.w);
  }

 private:
  RAINFUSION_HOST_DEVICE static constexpr int32_t smaller(int32_t a, int32_t b) {
    return a < b ? a : b;
  }
};

RAINFUSION_HOST_DEVICE constexpr bool extents_meet(int32_t a, int32_t na, int32_t b, int32_t nb) {
  return a < b + nb && b < a + na;
}

// Whether a query and a key window share a token.
RAINFUSION_HOST_DEVICE constexpr bool windows_meet(const WindowCut& q_cut, const WindowCut& k_cut,
                                                   int32_t q_window, int32_t k_window) {
  const Extents q = q_cut.origin(q_window);
  const Extents k = k_cut.origin(k_window);
  return extents_meet(q.t, q_cut.box.t, k.t, k_cut.box.t) &&
         extents_meet(q.h, q_cut.box.h, k.h, k_cut.box.h) &&
         extents_meet(q.w, q_cut.box.w, k.w, k_cut.box.w);
}

// Whether a window has a token of an exact frame.
RAINFUSION_HOST_DEVICE constexpr bool is_exact(const TokenLayout& layout, const WindowCut& cut,
                                               int32_t window) {
  if (!layout.exact.any()) return false;
  const Extents at = cut.origin(window);
  return layout.has_exact(cut.token(at.t, 0, 0), cut.token(at.t + cut.clipped(at).t, 0, 0));
}

}  // namespace rainfusion
