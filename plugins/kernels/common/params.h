// What a launch hands to its kernels. Plain data; every pointer is a device pointer.
#pragma once

#include <cstdint>

#include "common/checkerboard.h"
#include "common/eight_bit.h"
#include "common/geometry.h"
#include "common/methods.h"
#include "common/windows.h"
#include "rainfusion/rainfusion.h"

namespace rainfusion {

constexpr int kMaxKeyBlocks = 8192;  // of a problem
constexpr int kMaxMaskWords = kMaxKeyBlocks / 32;
constexpr int kSampleTileRows = 128;  // sampled queries of a partial recall
constexpr int kSampleTiles = kSampleTokens / kSampleTileRows;

// Blocks as a problem asks for them.
inline BlockShape block_shape(const RainfusionProblem& problem) {
  const BlockShape usual = problem.precision == RAINFUSION_PRECISION_8BIT
                               ? eight_bit::block_shape(problem.head_size)
                               : block_shape(problem.head_size);
  return {problem.block_q != 0 ? problem.block_q : usual.q,
          problem.block_k != 0 ? problem.block_k : usual.k};
}

static_assert(kExactRanges == RAINFUSION_EXACT_RANGES, "as many as a problem may have");

inline ExactFrames exact_frames(const RainfusionProblem& problem) {
  ExactFrames frames{};
  for (int i = 0; i < kExactRanges; ++i) {
    frames.ranges[i] = {problem.exact_frames[i].begin, problem.exact_frames[i].end};
  }
  return frames;
}

// A problem as the kernels see it.
struct Geometry {
  TokenLayout layout;
  BlockCut q_cut;
  BlockCut k_cut;
  WindowCut q_windows;  // of methods by windows, instead of q_cut where heads are not dense
  WindowCut k_windows;
  Sample samples[kAxes];  // found on the host: a search of greatest common divisors
  int32_t batch;
  int32_t heads;
  int32_t head_size;
  int32_t mask_words;  // 32-bit words in a row of a block mask
  RainfusionDtype dtype;
  float alpha;
  float softmax_scale;
  MethodTraits method;
  bool eight_bit;

  explicit Geometry(const RainfusionProblem& problem)
      : layout(problem.tokens, problem.grid_t, problem.grid_h, problem.grid_w, problem.sink_frames,
               problem.last_sink_frames, problem.text == RAINFUSION_TEXT_FIRST,
               exact_frames(problem)),
        q_cut(layout, block_shape(problem).q),
        k_cut(layout, block_shape(problem).k),
        samples{arm_sample(layout, kSpatial), arm_sample(layout, kTemporal)},
        batch(problem.batch),
        heads(problem.heads),
        head_size(problem.head_size),
        dtype(problem.dtype),
        alpha(problem.alpha),
        softmax_scale(problem.softmax_scale != 0.f
                          ? problem.softmax_scale
                          : 1.f / sqrtf(static_cast<float>(problem.head_size))),
        method(kMethods[problem.method].traits),
        eight_bit(problem.precision == RAINFUSION_PRECISION_8BIT) {
    if (method.by_windows()) {
      q_windows = WindowCut(layout, block_shape(problem).q);
      k_windows = WindowCut(layout, block_shape(problem).k);
    }
    mask_words = static_cast<int32_t>(ceil_div(k_blocks(), 32));
  }

  RAINFUSION_HOST_DEVICE int32_t q_blocks() const {
    return method.by_windows() ? q_windows.blocks : q_cut.blocks;
  }
  RAINFUSION_HOST_DEVICE int32_t k_blocks() const {
    return method.by_windows() ? k_windows.blocks : k_cut.blocks;
  }

  // Where there is nothing to choose from.
  RAINFUSION_HOST_DEVICE bool always_dense() const {
    return layout.always_dense() || (method.by_windows() && k_windows.windows() < 2);
  }

  RAINFUSION_HOST_DEVICE int batch_heads() const { return batch * heads; }

  // Block masks in the workspace: one a head, or one an axis and band for all heads.
  int masks() const { return method.bands > 0 ? kAxes * method.bands : batch_heads(); }
  RAINFUSION_HOST_DEVICE int mask_of(Axis axis, int band) const {
    return axis * method.bands + band;
  }
  RAINFUSION_HOST_DEVICE Axis axis_of(int mask) const {
    return static_cast<Axis>(mask / method.bands);
  }
  RAINFUSION_HOST_DEVICE int band_of_mask(int mask) const { return mask % method.bands; }
  int64_t mask_rows() const { return static_cast<int64_t>(masks()) * q_blocks(); }

  // Tiles of a head that 8-bit operands are laid out in: those of either way to cut the tokens, and
  // behind key windows those of their pseudo-keys.
  int32_t q_tiles() const {
    const int32_t by_windows = always_dense() ? 0 : q_windows.blocks;
    return q_cut.blocks > by_windows ? q_cut.blocks : by_windows;
  }
  int32_t k_tiles() const {
    const int32_t by_windows = always_dense() ? 0 : k_windows.blocks + pseudo_tiles();
    return k_cut.blocks > by_windows ? k_cut.blocks : by_windows;
  }
  RAINFUSION_HOST_DEVICE int32_t pseudo_tiles() const {
    return static_cast<int32_t>(ceil_div(k_windows.windows(), eight_bit::keys_of(head_size)));
  }
  RAINFUSION_HOST_DEVICE int32_t statistics_chunks() const {
    return static_cast<int32_t>(ceil_div(layout.tokens, eight_bit::kStatisticsTokens));
  }

  // Rows of a head's gathered keys: checkerboard keys at the smallest stride where a head can be
  // textural, pseudo-keys of all windows.
  int32_t gathered_rows() const {
    if (always_dense()) return 0;
    if (method.by_windows()) return k_windows.windows();
    return method.textural ? static_cast<int32_t>(checkerboard_keys(layout, 2)) : 0;
  }
};

// Operands rounded to 8 bits, where a problem asks for them: tiles as common/eight_bit.h lays them
// out, and what scores and values are multiplied by and moved by.
struct EightBit {
  uint8_t* q;                  // [batch, heads, q_tiles, kQueries * head_size]
  uint8_t* k;                  // [batch, heads, k_tiles, keys * head_size]
  uint8_t* v;                  // the same
  float* q_factor;             // [batch, heads, q_tiles, kQueries] to base 2
  eight_bit::KeyTile* k_tile;  // [batch, heads, k_tiles]
  float* lse_shift;            // [batch, heads, tokens] of the centre of keys
  float* partials;             // [batch, heads, chunks, kPartials, head_size]
  float* centres;              // [batch, heads, kCentres, head_size]
  float* rounded_sums;         // [batch, heads, k_tiles, head_size], of a tile's rounded values
};

// Parts of the workspace.
struct Workspace {
  int32_t* kind;            // [batch, heads] RainfusionKind
  int32_t* mask_index;      // [batch, heads] block mask of the head
  uint32_t* masks;          // [masks, q_blocks, mask_words] bit = key block is kept; rows of sinks
                            // are not read
  int32_t* gathered_count;  // [batch] checkerboard keys below kv_len
  int32_t* next_item;       // [1] queue of persistent attention kernels, common/queue.cuh
  float* partial_recall;    // [batch, heads, kAxes, kSampleTiles, kMaxBands]
  float* q_means;           // [batch, heads, q_blocks, head_size]
  float* k_means;           // [batch, heads, head_size, k_blocks], read along the blocks

  // Checkerboard keys and values of textural heads, in the order of the raster, or pseudo-keys and
  // their values of all key windows: [batch, heads, gathered_rows, head_size].
  void* gathered_k;
  void* gathered_v;

  // [batch, key windows] what is added to the score of a pseudo-key before it is scaled:
  // log(tokens below kv_len) / softmax_scale, -infinity where there is none.
  float* pseudo_bias;

  EightBit eight_bit;
};

// Where the partial recalls of a tile of sampled queries stand, a number a band.
RAINFUSION_HOST_DEVICE inline int64_t partial_recall_place(int64_t batch_head, Axis axis,
                                                           int tile) {
  return ((batch_head * kAxes + axis) * kSampleTiles + tile) * kMaxBands;
}

// What the recall kernels take.
struct RecallParams {
  const void* q;
  const void* k;
  RainfusionStrides q_strides;
  RainfusionStrides k_strides;
  const float* sparsity;
  const int32_t* kv_len;
  float* partial_recall;
  Geometry geometry;
};

// What the attention kernels take.
struct AttentionParams {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  RainfusionStrides q_strides;
  RainfusionStrides k_strides;
  RainfusionStrides v_strides;
  RainfusionStrides out_strides;
  float* lse;
  BlockCut q_cut;
  BlockCut k_cut;
  int32_t batch;
  int32_t heads;
  float softmax_scale;
  const int32_t* kv_len;
  const int32_t* kind;
  const int32_t* mask_index;
  const uint32_t* masks;
  int32_t mask_words;
  int32_t free_begin;  // tokens [free_begin, free_end) are no sinks
  int32_t free_end;
  const void* gathered_k;  // null where no head can be textural
  const void* gathered_v;
  int32_t gathered_rows;
  const int32_t* gathered_count;
  int32_t* next_item;   // of the queue, common/queue.cuh
  WindowCut q_windows;  // of piecewise; every head has them if kind[0] says so, or none
  WindowCut k_windows;
  const float* pseudo_bias;

  RAINFUSION_HOST_DEVICE RainfusionStrides gathered_strides(int head_size) const {
    const int64_t head = static_cast<int64_t>(gathered_rows) * head_size;
    return {heads * head, head, head_size};
  }
};

// What the attention kernels of 8 bits take besides.
struct EightBitParams {
  AttentionParams attention;
  EightBit tiles;
  int32_t q_tiles;
  int32_t k_tiles;
};

// Whether every head is dense; every kernel asks this of the same device value.
RAINFUSION_HOST_DEVICE inline bool is_dense(const Geometry& geometry, const float* sparsity) {
  return !(*sparsity > 0.f) || geometry.always_dense();
}

RAINFUSION_HOST_DEVICE inline int32_t key_count(const int32_t* kv_len, int batch, int32_t tokens) {
  if (kv_len == nullptr) return tokens;
  const int32_t count = kv_len[batch];
  return count < 0 ? 0 : (count < tokens ? count : tokens);
}

}  // namespace rainfusion
