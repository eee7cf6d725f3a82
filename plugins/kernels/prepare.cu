// Block masks and the table of textural keys: what all heads share.

#include <cuda_runtime.h>

#include "launch.h"

namespace rainfusion {
namespace {

constexpr int kPrepareThreads = 256;

// A warp evaluates the 32 key blocks of a mask word.
__device__ void write_mask_word(const Geometry& g, float sparsity, uint32_t* masks, int64_t word) {
  const int lane = threadIdx.x % 32;
  const int bands = g.method == RAINFUSION_METHOD_PLUS ? kMaxBands : 1;
  const int64_t row = word / g.mask_words;
  const int q_block = static_cast<int>(row % g.cut.blocks);
  const int mask = static_cast<int>(row / g.cut.blocks);
  const int k_block = static_cast<int>(word % g.mask_words) * 32 + lane;
  const Axis axis = mask < bands ? Axis::kSpatial : Axis::kTemporal;
  const bool keep =
      k_block < g.cut.blocks &&
      keeps_block(g.layout, axis, band_at(g.method, sparsity, mask % bands), q_block, k_block);
  const uint32_t bits = __ballot_sync(0xffffffffu, keep);
  if (lane == 0) masks[word] = bits;
}

// Writes a place of the table, and the batch elements' counts where their last key stands.
__device__ void write_textural_row(const Geometry& g, int64_t stride, const int32_t* kv_len,
                                   const Workspace& workspace, int64_t index, int64_t count) {
  const int64_t token = textural_token(g.layout, stride, index);
  const int64_t next =
      index + 1 < count ? textural_token(g.layout, stride, index + 1) : g.layout.tokens;
  workspace.textural_rows[index] = static_cast<int32_t>(token);
  for (int b = 0; b < g.batch; ++b) {
    const int32_t keys = key_count(kv_len, b, g.cut.tokens);
    if (token < keys && (keys <= next || index + 1 == count)) {
      workspace.textural_count[b] = static_cast<int32_t>(index + 1);
    }
    if (index == 0 && keys <= token) workspace.textural_count[b] = 0;
  }
}

__global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(const __grid_constant__ Geometry g, const float* sparsity_pointer,
                   const int32_t* kv_len, const __grid_constant__ Workspace workspace,
                   int64_t mask_words, int mask_ctas) {
  if (is_dense(g.layout, sparsity_pointer)) return;
  const float sparsity = clamp_sparsity(*sparsity_pointer);
  if (blockIdx.x < mask_ctas) {
    const int64_t word =
        static_cast<int64_t>(blockIdx.x) * (kPrepareThreads / 32) + threadIdx.x / 32;
    if (word < mask_words) write_mask_word(g, sparsity, workspace.masks, word);
    return;
  }
  const int64_t stride = stride_of(sparsity);
  const int64_t count = textural_keys(g.layout, stride);
  const int64_t index =
      static_cast<int64_t>(blockIdx.x - mask_ctas) * kPrepareThreads + threadIdx.x;
  if (index < count) write_textural_row(g, stride, kv_len, workspace, index, count);
}

}  // namespace

cudaError_t launch_prepare(const Geometry& geometry, const RainfusionTensors& tensors,
                           const Workspace& workspace, cudaStream_t stream) {
  const int64_t words =
      static_cast<int64_t>(geometry.masks()) * geometry.cut.blocks * geometry.mask_words;
  const int64_t mask_ctas = ceil_div(words, kPrepareThreads / 32);
  const int64_t places = workspace.textural_rows != nullptr ? textural_keys(geometry.layout, 2) : 0;
  const int64_t table_ctas = ceil_div(places, kPrepareThreads);
  if (mask_ctas + table_ctas == 0) return cudaSuccess;
  prepare_kernel<<<static_cast<unsigned>(mask_ctas + table_ctas), kPrepareThreads, 0, stream>>>(
      geometry, tensors.sparsity, tensors.kv_len, workspace, words, static_cast<int>(mask_ctas));
  return cudaGetLastError();
}

}  // namespace rainfusion
