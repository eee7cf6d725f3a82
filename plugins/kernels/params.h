// What a launch hands to its kernels. Plain data; every pointer is a device pointer.
#pragma once

#include <cstdint>

#include "rainfusion/geometry.h"
#include "rainfusion/rainfusion.h"

namespace rainfusion {

constexpr int kMaxBlocks = 8192;  // query or key blocks of a problem
constexpr int kMaxMaskWords = kMaxBlocks / 32;
constexpr int kSamples = 2;  // ARM's samples: 0 local (temporal), 1 global (spatial)
constexpr int kSampleTiles = kSampleTokens / kBlock;
constexpr int kTablePadding = 128;  // the attention kernels read the key table in whole tiles

// A problem as the kernels see it.
struct Geometry {
  TokenLayout layout;
  BlockCut cut;
  int32_t batch;
  int32_t heads;
  int32_t mask_words;  // 32-bit words in a row of a block mask
  RainfusionMethod method;
  float alpha;
  float softmax_scale;

  explicit Geometry(const RainfusionProblem& problem)
      : layout(problem.tokens, problem.grid_t, problem.grid_h, problem.grid_w, problem.sink_frames,
               problem.text == RAINFUSION_TEXT_FIRST),
        cut(layout),
        batch(problem.batch),
        heads(problem.heads),
        mask_words(static_cast<int32_t>(ceil_div(layout.blocks(), 32))),
        method(problem.method),
        alpha(problem.alpha),
        softmax_scale(problem.softmax_scale != 0.f
                          ? problem.softmax_scale
                          : 1.f / sqrtf(static_cast<float>(problem.head_size))) {}

  int batch_heads() const { return batch * heads; }
  int bands() const { return method == RAINFUSION_METHOD_PLUS ? kMaxBands : 1; }

  // Block masks in the workspace: one a head, or one an axis and band for all heads.
  int masks() const {
    return method == RAINFUSION_METHOD_RAINFUSION2 ? batch_heads() : 2 * bands();
  }
};

// Parts of the workspace.
struct Workspace {
  int32_t* kind;            // [batch, heads] RainfusionKind
  int32_t* mask_index;      // [batch, heads] block mask of the head
  uint32_t* masks;          // [masks, blocks, mask_words] bit = key block is kept
  int32_t* textural_rows;   // tokens a textural head's sparse rows attend to, ascending
  int32_t* textural_count;  // [batch] how many of them are below kv_len
  int32_t* next_item;       // [1] queue of a persistent attention kernel
  float* partial_recall;    // [batch, heads, kSamples, kSampleTiles, kMaxBands]
  float* q_means;           // [batch, heads, blocks, head_size]
  float* k_means;
};

// Whether every head is dense; every kernel asks this of the same device value.
RAINFUSION_HOST_DEVICE inline bool is_dense(const TokenLayout& layout, const float* sparsity) {
  return !(*sparsity > 0.f) || layout.always_dense();
}

// Band `index` of a method, in millionths.
RAINFUSION_HOST_DEVICE inline int64_t band_at(RainfusionMethod method, float sparsity, int index) {
  if (method == RAINFUSION_METHOD_PLUS) return kBandUnit / (8 >> index);
  return band_of(clamp_sparsity(sparsity));
}

RAINFUSION_HOST_DEVICE inline int32_t key_count(const int32_t* kv_len, int batch, int32_t tokens) {
  if (kv_len == nullptr) return tokens;
  const int32_t count = kv_len[batch];
  return count < 0 ? 0 : (count < tokens ? count : tokens);
}

}  // namespace rainfusion
