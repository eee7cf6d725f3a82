#include "common/windows.h"

namespace rainfusion {
namespace {

constexpr int32_t kMostStretch = 8;  // of a window's rows and columns before it costs half as much

// A box with its cost in whole numbers: windows * (20 t + 9) / t * (2 or 3), in 720720ths, which
// all t divide.
constexpr int64_t kUnit = 720720;

struct Candidate {
  int64_t cost;
  Extents box;

  bool before(const Candidate& other) const {
    if (cost != other.cost) return cost < other.cost;
    const int32_t sides = box.h + box.w;
    const int32_t other_sides = other.box.h + other.box.w;
    if (sides != other_sides) return sides < other_sides;
    if (box.t != other.box.t) return box.t > other.box.t;
    return box.w > other.box.w;
  }
};

int64_t count_windows(const Extents& grid, const Extents& box) {
  return ceil_div(grid.t, box.t) * ceil_div(grid.h, box.h) * ceil_div(grid.w, box.w);
}

int64_t shape_cost(const Extents& grid, const Extents& box) {
  const bool stretched = box.h > kMostStretch * box.w || box.w > kMostStretch * box.h;
  return count_windows(grid, box) * (20 * box.t + 9) * (kUnit / box.t) * (stretched ? 3 : 2);
}

Candidate best_candidate(const Extents& grid, int32_t most, int32_t frames) {
  Candidate best{INT64_MAX, {1, 1, 1}};
  for (int32_t t = 1; t <= frames && t <= most; ++t) {
    for (int32_t h = 1; h <= most / t; ++h) {
      for (int32_t w = 1; w <= most / (t * h); ++w) {
        const Extents box{t, h, w};
        const Candidate candidate{shape_cost(grid, box), box};
        if (candidate.before(best)) best = candidate;
      }
    }
  }
  return best;
}

// The last grid that was asked for: every attention of a network asks for the same.
struct Memory {
  Extents grid;
  int32_t most;
  int32_t frames;
  Candidate best;
};

const Candidate& recall_candidate(const Extents& grid, int32_t most, int32_t frames) {
  constexpr int kPlaces = 4;
  thread_local Memory memory[kPlaces] = {};
  thread_local int next = 0;
  for (const Memory& m : memory) {
    if (m.most == most && m.frames == frames && m.grid.t == grid.t && m.grid.h == grid.h &&
        m.grid.w == grid.w) {
      return m.best;
    }
  }
  Memory& place = memory[next];
  next = (next + 1) % kPlaces;
  place = {grid, most, frames, best_candidate(grid, most, frames)};
  return place.best;
}

int32_t evened(int32_t extent, int32_t size) {
  return static_cast<int32_t>(ceil_div(extent, ceil_div(extent, size)));
}

}  // namespace

Extents window_shape(const Extents& grid, int32_t most, int32_t frames) {
  const Extents box = recall_candidate(grid, most, frames).box;
  return {evened(grid.t, box.t), evened(grid.h, box.h), evened(grid.w, box.w)};
}

// The least cost grows with every extent, because boxes may be larger than the grid, and it is at
// least as many windows as there are times the smallest weight, that of the most frames.
int64_t most_windows(const Extents& extents, int64_t tokens, int32_t most, int32_t frames) {
  const auto up_to_tokens = [&](int32_t extent) {
    return static_cast<int32_t>(min64(extent, tokens));
  };
  const Extents largest{up_to_tokens(extents.t), up_to_tokens(extents.h), up_to_tokens(extents.w)};
  // Some box leaves at most 4 * tokens / most windows, or one every `frames` frames: as wide as
  // the grid or `most`, then as high as fits, then as long. Each of two roundings at most doubles
  // what an even cut would need. Its weight is at most 29 / 20 * 3 / 2.
  const int64_t by_tokens =
      (4 * ceil_div(tokens, most) + ceil_div(largest.t, frames)) * 29 * 3 / (20 * 2) + 1;
  // The extents need not make a clip together: no cost of so many places would be a number.
  constexpr int64_t kMostPlaces = int64_t{1} << 36;
  if (static_cast<int64_t>(largest.t) * largest.h > kMostPlaces / largest.w) return by_tokens;
  const int64_t cost = recall_candidate(largest, most, frames).cost;
  const int64_t by_extents = cost * frames / (kUnit * (20 * frames + 9) * 2);
  return min64(by_extents, by_tokens);
}

WindowCut::WindowCut(const TokenLayout& layout, int32_t size_)
    : size(size_),
      box{1, 1, 1},
      grid{static_cast<int32_t>(layout.free_frames),
           static_cast<int32_t>(layout.frame / layout.width), static_cast<int32_t>(layout.width)},
      counts{0, 0, 0},
      free_begin(static_cast<int32_t>(layout.free_begin())),
      free_end(static_cast<int32_t>(layout.free_end())),
      tokens(static_cast<int32_t>(layout.tokens)),
      leading_sinks(static_cast<int32_t>(ceil_div(layout.free_begin(), size_))),
      trailing_sinks(static_cast<int32_t>(ceil_div(layout.tokens - layout.free_end(), size_))),
      blocks(0) {
  if (grid.t > 0) {
    box = window_shape(grid, size, most_frames(layout));
    counts = {static_cast<int32_t>(ceil_div(grid.t, box.t)),
              static_cast<int32_t>(ceil_div(grid.h, box.h)),
              static_cast<int32_t>(ceil_div(grid.w, box.w))};
  }
  blocks = leading_sinks + counts.volume() + trailing_sinks;
}

}  // namespace rainfusion
