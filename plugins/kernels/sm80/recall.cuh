// ARM's recalls: how much of the attention among sampled tokens lies inside a band of the samples.
//
// A CTA takes 128 sampled queries of one head and walks over all sampled keys: scores on tensor
// cores, online sums of the whole mass and of the mass in each band, no values. It leaves the sum
// of its queries' recalls; decide.cu adds them up in a fixed order.
#pragma once

#include <cuda_runtime.h>

#include "plan/recall_mass.cuh"
#include "plan/recall_task.cuh"
#include "sm80/launch.h"
#include "sm80/tile.cuh"

namespace rainfusion::sm80 {

constexpr int kRecallTileN = 64;
static_assert(kTileM == kSampleTileRows, "a CTA's queries are those of a partial recall");

template <typename Element, int kHeadSize, int kBands>
__global__ void __launch_bounds__(kThreads, 2)
    recall_kernel(const __grid_constant__ RecallParams p) {
  using Shape = TileShape<Element, kHeadSize>;
  constexpr int kWarps = kThreads / 32;
  constexpr int kTileBytes = kRecallTileN * Shape::kRowBytes;
  extern __shared__ __align__(1024) char smem[];
  __shared__ float warp_sums[kBands * kWarps];

  if (is_dense(p.geometry, p.sparsity)) return;
  const RecallTask<Element, kBands> task(p);
  const int count = task.tokens.count;
  if (task.q_begin >= count) return;

  const auto queries = row_source<Shape>(task.rows(p.q, p.q_strides), task.row_bytes(p.q_strides));
  const auto keys = row_source<Shape>(task.rows(p.k, p.k_strides), task.row_bytes(p.k_strides));
  const uint32_t shared = shared_address(smem);
  const uint32_t key_tiles = shared + kTileM * Shape::kRowBytes;
  const auto copy_keys = [&](int tile) {
    copy_rows<Shape, kRecallTileN>(key_tiles + tile % 2 * kTileBytes + copy_offset<Shape>(), keys,
                                   tile * kRecallTileN, count - tile * kRecallTileN);
  };
  copy_rows<Shape, kTileM>(shared + copy_offset<Shape>(), queries, task.q_begin,
                           count - task.q_begin);
  copy_keys(0);
  copy_async_commit();
  const uint32_t query_lane = shared + query_lane_offset<Shape>();

  Mass<kBands, kWarpTiles * 2> mass;
  const int lane = threadIdx.x % 32;
  const int first_row = task.q_begin + threadIdx.x / 32 * 32 + lane / 4;
  const float scale_log2 = p.geometry.softmax_scale * kLog2E;
  const int tiles = (count + kRecallTileN - 1) / kRecallTileN;
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is here; the last one is used up
    if (tile + 1 < tiles) copy_keys(tile + 1);
    copy_async_commit();
    Scores<kRecallTileN> s;
    multiply_keys<Element, kHeadSize, kRecallTileN>(
        s, query_lane, key_tiles + tile % 2 * kTileBytes + key_lane_offset<Shape>());
    const int valid = count - tile * kRecallTileN;
    if (valid < kRecallTileN) mask_keys<kRecallTileN>(s, valid);
    const auto score = [&](int r, int n, int i) { return s[r / 2][n][r % 2 * 2 + i]; };
    const int first_distance = first_row - tile * kRecallTileN - lane % 4 * 2;
    mass.template add<kRecallTileN>(score, first_distance, task.widths, scale_log2);
  }
  write_partial<kWarps>(mass, first_row, count, warp_sums, task.partial);
}

template <typename Element, int kHeadSize, int kBands>
cudaError_t launch_bands(const RecallParams& params, cudaStream_t stream) {
  constexpr int kBytes = (kTileM + 2 * kRecallTileN) * TileShape<Element, kHeadSize>::kRowBytes;
  const auto kernel = recall_kernel<Element, kHeadSize, kBands>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<recall_grid(params.geometry), kThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename Element, int kHeadSize>
cudaError_t launch_recall(const RecallParams& params, cudaStream_t stream) {
  return with_bands(params.geometry.method.bands, [&](auto bands) {
    return launch_bands<Element, kHeadSize, bands()>(params, stream);
  });
}

}  // namespace rainfusion::sm80
