// Tokens, blocks, axes and samples: the one definition of RainFusion's geometry.
//
// Plain integer arithmetic, usable on host and device, shared by the kernels, the host-side block
// rule (rainfusion_block_mask_host) and, through it, by the tests that hold the Python reference
// against it. docs/rainfusion.md gives the rules in prose.
#pragma once

#include <cstdint>

#include "common/sparsity.h"

namespace rainfusion {

constexpr int kSampleTokens = 1024;  // ARM samples at most this many tokens

// Tokens in a query block and in a key block.
struct BlockShape {
  int32_t q;
  int32_t k;
};

// The definition's default by head size, where a problem asks for no other shape. No kernel's
// constant: it is what Hopper's computes fastest (docs/kernels.md), but a shape decides which pairs
// are kept, and so belongs to the problem, whatever GPU it runs on.
RAINFUSION_HOST_DEVICE constexpr BlockShape block_shape(int32_t head_size) {
  return BlockShape{192, head_size <= 64 ? 128 : head_size <= 96 ? 96 : 80};
}

// Pairs (x, y), x in [x0, x0 + nx), y in [y0, y0 + ny), with |x - y| < width, in closed form.
RAINFUSION_HOST_DEVICE constexpr int64_t triangle(int64_t x) { return x > 0 ? x * (x + 1) / 2 : 0; }

RAINFUSION_HOST_DEVICE constexpr int64_t clamped_sum(int64_t x, int64_t limit) {
  return triangle(x) - triangle(x - limit);  // sum over y <= x of clamp(y, 0, limit)
}

// Pairs (i, j), i in [0, ni), j in [0, nj), with i - j >= lower.
RAINFUSION_HOST_DEVICE constexpr int64_t pairs_at_least(int64_t ni, int64_t nj, int64_t lower) {
  return clamped_sum(ni - lower, nj) - clamped_sum(-lower, nj);
}

RAINFUSION_HOST_DEVICE constexpr int64_t pairs_within(int64_t x0, int64_t nx, int64_t y0,
                                                      int64_t ny, int64_t width) {
  const int64_t shift = x0 - y0;
  return pairs_at_least(nx, ny, 1 - width - shift) - pairs_at_least(nx, ny, width - shift);
}

// What a head may be local along. Samples, recalls and masks of the axes are arrays in this order.
enum Axis { kSpatial, kTemporal };
constexpr int kAxes = 2;

// Frames that are exact wherever they are in the clip, as ranges that are empty where there are
// fewer.
constexpr int kExactRanges = 4;

struct FrameRange {
  int32_t begin;
  int32_t end;
};

struct ExactFrames {
  FrameRange ranges[kExactRanges];

  RAINFUSION_HOST_DEVICE constexpr bool any() const { return ranges[0].end > 0; }
};

// Where the tokens of a problem stand.
struct TokenLayout {
  int64_t tokens;       // S
  int64_t text_tokens;  // L
  int64_t video_begin;
  int64_t video_tokens;
  int64_t width;              // W
  int64_t frame;              // H * W
  int64_t free_frames;        // T' = T - sink_frames - last_sink_frames, at least 0
  int64_t free_tokens;        // n = T' * H * W
  int64_t first_sink_tokens;  // of the sink frames before them
  int64_t last_sink_tokens;   // and of those behind them
  bool text_first;
  ExactFrames exact;

  RAINFUSION_HOST_DEVICE constexpr TokenLayout(int64_t tokens_, int64_t grid_t, int64_t grid_h,
                                               int64_t grid_w, int64_t sink_frames,
                                               int64_t last_sink_frames, bool text_first_,
                                               const ExactFrames& exact_ = {})
      : tokens(tokens_),
        text_tokens(tokens_ - grid_t * grid_h * grid_w),
        video_begin(text_first_ ? tokens_ - grid_t * grid_h * grid_w : 0),
        video_tokens(grid_t * grid_h * grid_w),
        width(grid_w),
        frame(grid_h * grid_w),
        free_frames(max64(0, grid_t - sink_frames - last_sink_frames)),
        free_tokens(free_frames * frame),
        first_sink_tokens(min64(grid_t, sink_frames) * frame),
        last_sink_tokens(video_tokens - first_sink_tokens - free_tokens),
        text_first(text_first_),
        exact(exact_) {}

  // Heads of a clip with fewer than two non-sink frames stay dense.
  RAINFUSION_HOST_DEVICE constexpr bool always_dense() const { return free_frames < 2; }

  // First non-sink token in memory order; the others follow it in the order of the raster.
  RAINFUSION_HOST_DEVICE constexpr int64_t free_begin() const {
    return video_begin + first_sink_tokens;
  }
  RAINFUSION_HOST_DEVICE constexpr int64_t free_end() const { return free_begin() + free_tokens; }

  // Whether one of the tokens [begin, end) is of an exact frame.
  RAINFUSION_HOST_DEVICE constexpr bool has_exact(int64_t begin, int64_t end) const {
    if (!exact.any()) return false;
    for (const FrameRange& range : exact.ranges) {
      const int64_t first = max64(begin, video_begin + range.begin * frame);
      if (first < min64(end, video_begin + range.end * frame)) return true;
    }
    return false;
  }

  // Places along an axis, of which a band is a share: raster indices, or places in a frame.
  RAINFUSION_HOST_DEVICE constexpr int64_t extent(Axis axis) const {
    return axis == kSpatial ? free_tokens : frame;
  }
};

// Text and video cut into blocks of `size` tokens, each from its own first token, in memory order.
// In 32 bits: the attention kernels carry it.
struct BlockCut {
  int32_t size;
  int32_t first_blocks;  // blocks of the part (text or video) that comes first in memory
  int32_t first_tokens;
  int32_t tokens;
  int32_t blocks;
  int32_t leading_sinks;   // blocks [0, leading_sinks) hold sink tokens
  int32_t trailing_sinks;  // and so do the last `trailing_sinks` blocks; no block is among both

  RAINFUSION_HOST_DEVICE constexpr BlockCut(const TokenLayout& layout, int32_t size_)
      : size(size_),
        first_blocks(count(layout.text_first ? layout.text_tokens : layout.video_tokens, size_)),
        first_tokens(
            static_cast<int32_t>(layout.text_first ? layout.text_tokens : layout.video_tokens)),
        tokens(static_cast<int32_t>(layout.tokens)),
        blocks(count(layout.text_tokens, size_) + count(layout.video_tokens, size_)),
        leading_sinks((layout.text_first ? count(layout.text_tokens, size_) : 0) +
                      count(layout.first_sink_tokens, size_)),
        trailing_sinks(
            smaller(blocks - leading_sinks,
                    (layout.text_first ? 0 : count(layout.text_tokens, size_)) +
                        blocks_of_last(layout.video_tokens, layout.last_sink_tokens, size_))) {}

  RAINFUSION_HOST_DEVICE constexpr int32_t sinks() const { return leading_sinks + trailing_sinks; }

  RAINFUSION_HOST_DEVICE constexpr bool is_sink(int32_t block) const {
    return block < leading_sinks || block >= blocks - trailing_sinks;
  }

  RAINFUSION_HOST_DEVICE constexpr int32_t begin(int32_t block) const {
    const int32_t gap = first_blocks * size - first_tokens;  // short last block of the first part
    return block * size - (block < first_blocks ? 0 : gap);
  }

  RAINFUSION_HOST_DEVICE constexpr int32_t end(int32_t block) const {
    const int32_t limit = block < first_blocks ? first_tokens : tokens;
    const int32_t full = begin(block) + size;
    return full < limit ? full : limit;
  }

  // Blocks that begin before token `limit`.
  RAINFUSION_HOST_DEVICE constexpr int32_t blocks_below(int32_t limit) const {
    return limit <= first_tokens ? count(limit, size)
                                 : first_blocks + count(limit - first_tokens, size);
  }

  // The block with a token.
  RAINFUSION_HOST_DEVICE constexpr int32_t block_of(int32_t token) const {
    return blocks_below(token + 1) - 1;
  }

 private:
  RAINFUSION_HOST_DEVICE static constexpr int32_t count(int64_t tokens, int32_t size) {
    return static_cast<int32_t>(ceil_div(tokens, size));
  }
  // Blocks of the video that hold one of its last `last` tokens.
  RAINFUSION_HOST_DEVICE static constexpr int32_t blocks_of_last(int64_t video, int64_t last,
                                                                 int32_t size) {
    return last > 0 ? count(video, size) - static_cast<int32_t>((video - last) / size) : 0;
  }
  RAINFUSION_HOST_DEVICE static constexpr int32_t smaller(int32_t a, int32_t b) {
    return a < b ? a : b;
  }
};

// Pairs of two runs of raster indices whose places p = a % frame are nearer than `width`.
RAINFUSION_HOST_DEVICE constexpr int64_t place_pairs_within(int64_t a0, int64_t na, int64_t b0,
                                                            int64_t nb, int64_t frame,
                                                            int64_t width) {
  int64_t pairs = 0;
  for (int64_t a = a0; a < a0 + na;) {
    const int64_t run_a = min64(a0 + na - a, frame - a % frame);
    for (int64_t b = b0; b < b0 + nb;) {
      const int64_t run_b = min64(b0 + nb - b, frame - b % frame);
      pairs += pairs_within(a % frame, run_a, b % frame, run_b, width);
      b += run_b;
    }
    a += run_a;
  }
  return pairs;
}

// Whether a query and a key block share a token.
RAINFUSION_HOST_DEVICE constexpr bool blocks_meet(const BlockCut& q_cut, const BlockCut& k_cut,
                                                  int32_t q_index, int32_t k_index) {
  return q_cut.begin(q_index) < k_cut.end(k_index) && k_cut.begin(k_index) < q_cut.end(q_index);
}

// Whether a block has a token of an exact frame.
RAINFUSION_HOST_DEVICE constexpr bool is_exact(const TokenLayout& layout, const BlockCut& cut,
                                               int32_t block) {
  return layout.has_exact(cut.begin(block), cut.end(block));
}

// Block pairs that every kind keeps: one is a sink or has a token of an exact frame, or they share
// a token.
RAINFUSION_HOST_DEVICE constexpr bool always_keeps(const TokenLayout& layout, const BlockCut& q_cut,
                                                   const BlockCut& k_cut, int32_t q_index,
                                                   int32_t k_index) {
  return q_cut.is_sink(q_index) || k_cut.is_sink(k_index) ||
         blocks_meet(q_cut, k_cut, q_index, k_index) || is_exact(layout, q_cut, q_index) ||
         is_exact(layout, k_cut, k_index);
}

// The block rule: kept if always kept, or if at least half of the pairs are in the mask.
RAINFUSION_HOST_DEVICE constexpr bool keeps_block(const TokenLayout& layout, const BlockCut& q_cut,
                                                  const BlockCut& k_cut, Axis axis, int64_t band,
                                                  int32_t q_index, int32_t k_index) {
  if (always_keeps(layout, q_cut, k_cut, q_index, k_index)) return true;
  const int64_t q_begin = q_cut.begin(q_index);
  const int64_t k_begin = k_cut.begin(k_index);
  const int64_t q_tokens = q_cut.end(q_index) - q_begin;
  const int64_t k_tokens = k_cut.end(k_index) - k_begin;
  const int64_t q_raster = q_begin - layout.free_begin();
  const int64_t k_raster = k_begin - layout.free_begin();
  const int64_t width = band_width(band, layout.extent(axis));
  const int64_t pairs =
      axis == kSpatial
          ? pairs_within(q_raster, q_tokens, k_raster, k_tokens, width)
          : place_pairs_within(q_raster, q_tokens, k_raster, k_tokens, layout.frame, width);
  return 2 * pairs >= q_tokens * k_tokens;
}

// An arithmetic progression of non-sink raster indices: 0, step, 2 * step, ...
struct Sample {
  int64_t step;
  int64_t count;
};

RAINFUSION_HOST_DEVICE constexpr int64_t gcd64(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// ARM's sample for an axis. Temporal, the local sample: places of the first non-sink frame.
// Spatial, the global sample: all non-sink tokens, with a step coprime to W.
RAINFUSION_HOST_DEVICE constexpr Sample arm_sample(const TokenLayout& layout, Axis axis) {
  const int64_t extent = layout.extent(axis);
  if (axis == kTemporal) {
    const int64_t step = ceil_div(extent, kSampleTokens);
    return Sample{step, ceil_div(extent, step)};
  }
  const int64_t size = min64(layout.frame, kSampleTokens);
  int64_t step = max64(1, ceil_div(extent, size));
  while (gcd64(step, layout.width) != 1) ++step;
  return Sample{step, ceil_div(extent, step)};
}

}  // namespace rainfusion
