// Block masks of spatial and temporal heads, which all heads share.

#include <cuda_runtime.h>

#include "common/launch.h"

namespace rainfusion {
namespace {

constexpr int kThreads = 256;

// A warp evaluates the 32 key blocks of a mask word.
__device__ void write_mask_word(const Geometry& g, float sparsity, uint32_t* masks, int64_t word) {
  const int lane = threadIdx.x % 32;
  const int64_t row = word / g.mask_words;
  const int q_block = static_cast<int>(row % g.q_cut.blocks);
  const int mask = static_cast<int>(row / g.q_cut.blocks);
  const int k_block = static_cast<int>(word % g.mask_words) * 32 + lane;
  const int64_t band = g.method.band_at(sparsity, g.band_of_mask(mask));
  const bool keep =
      k_block < g.k_cut.blocks &&
      keeps_block(g.layout, g.q_cut, g.k_cut, g.axis_of(mask), band, q_block, k_block);
  const uint32_t bits = __ballot_sync(0xffffffffu, keep);
  if (lane == 0) masks[word] = bits;
}

__global__ void __launch_bounds__(kThreads)
    band_masks_kernel(const __grid_constant__ Geometry g, const float* sparsity_pointer,
                      uint32_t* masks, int64_t mask_words) {
  if (is_dense(g, sparsity_pointer)) return;
  const int64_t word = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (word < mask_words) write_mask_word(g, *sparsity_pointer, masks, word);
}

}  // namespace

cudaError_t launch_band_masks(const Geometry& geometry, const RainfusionTensors& tensors,
                              const Workspace& workspace, cudaStream_t stream) {
  const int64_t words = geometry.mask_rows() * geometry.mask_words;
  const auto ctas = static_cast<unsigned>(ceil_div(words, kThreads / 32));
  band_masks_kernel<<<ctas, kThreads, 0, stream>>>(geometry, tensors.sparsity, workspace.masks,
                                                   words);
  return cudaGetLastError();
}

}  // namespace rainfusion
