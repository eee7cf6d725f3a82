// ARM's recalls on Hopper: as sm80/recall.cuh, with the scores of two warpgroups by wgmma.
#pragma once

#include "plan/recall_mass.cuh"
#include "plan/recall_task.cuh"
#include "sm90/kernel_shape.cuh"
#include "sm90/launch.h"
#include "sm90/scores.cuh"
#include "sm90/softmax.cuh"
#include "tma/barrier.cuh"
#include "tma/tile.cuh"

namespace rainfusion::sm90 {

constexpr int kGroups = 2;  // warpgroups of a CTA, each with 64 sampled queries
constexpr int kRecallThreads = kGroups * kGroupThreads;
constexpr int kRecallKeys = 128;  // of a tile
static_assert(kGroups * kGroupRows == kSampleTileRows, "a CTA's queries are a partial recall's");

template <typename Element, int kHeadSize>
struct RecallShared {
  using Queries = tma::Tile<Element, kHeadSize, kSampleTileRows>;
  using Keys = tma::Tile<Element, kHeadSize, kRecallKeys>;
  alignas(1024) char q[Queries::kBytes];
  alignas(1024) char k[2][Keys::kBytes];
};

// Starts the copy of rows [first, first + valid) to a tile, the rest zeroed.
template <typename Rows>
__device__ __forceinline__ void copy_rows(char* tile, const char* rows, int64_t row_bytes,
                                          int first, int valid) {
  constexpr int kChunks = Rows::kRows * Rows::kChunks;
  static_assert(kChunks % kRecallThreads == 0, "every thread copies as much");
  const uint32_t shared = shared_address(tile);
#pragma unroll
  for (int pass = 0; pass < kChunks / kRecallThreads; ++pass) {
    const int i = pass * kRecallThreads + threadIdx.x;
    const int row = i / Rows::kChunks;
    const int chunk = i % Rows::kChunks;
    copy_async_16(shared + Rows::offset(row, chunk),
                  rows + (first + row) * row_bytes + chunk * kChunkBytes, row < valid);
  }
}

template <typename Element, int kHeadSize, int kBands>
__global__ void __launch_bounds__(kRecallThreads, 2)
    recall_kernel(const __grid_constant__ RecallParams p) {
  using Storage = RecallShared<Element, kHeadSize>;
  using Queries = typename Storage::Queries;
  using Keys = typename Storage::Keys;
  constexpr int kWarps = kRecallThreads / 32;
  extern __shared__ __align__(1024) char memory[];
  __shared__ float warp_sums[kBands * kWarps];
  auto& shared = *reinterpret_cast<Storage*>(memory);

  if (is_dense(p.geometry, p.sparsity)) return;
  const RecallTask<Element, kBands> task(p);
  const int count = task.tokens.count;
  if (task.q_begin >= count) return;

  const char* keys = task.rows(p.k, p.k_strides);
  const auto copy_keys = [&](int tile) {
    copy_rows<Keys>(shared.k[tile % 2], keys, task.row_bytes(p.k_strides), tile * kRecallKeys,
                    count - tile * kRecallKeys);
  };
  copy_rows<Queries>(shared.q, task.rows(p.q, p.q_strides), task.row_bytes(p.q_strides),
                     task.q_begin, count - task.q_begin);
  copy_keys(0);
  copy_async_commit();

  Mass<kBands, kRows> mass;
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / kGroupThreads, 0);
  const int lane = threadIdx.x % 32;
  const int first_row = task.q_begin + threadIdx.x / 32 * 16 + lane / 4;
  const uint32_t q = shared_address(shared.q) + group * kGroupRows * Queries::kRowBytes;
  const float scale_log2 = p.geometry.softmax_scale * kLog2E;
  const int tiles = (count + kRecallKeys - 1) / kRecallKeys;
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<0>();
    tma::fence_async_proxy();
    __syncthreads();  // this tile is here; the last one is used up
    if (tile + 1 < tiles) copy_keys(tile + 1);
    copy_async_commit();
    float s[kRecallKeys / 2];
    start_scores<Element, Queries, Keys>(s, q, shared_address(shared.k[tile % 2]));
    wgmma_wait<0>();
    pin_registers(s);
    const int valid = count - tile * kRecallKeys;
    if (valid < kRecallKeys) mask_scores(s, valid);
    const auto score = [&](int r, int n, int i) { return s[n * 4 + r * 2 + i]; };
    const int first_distance = first_row - tile * kRecallKeys - lane % 4 * 2;
    mass.template add<kRecallKeys>(score, first_distance, task.widths, scale_log2);
  }
  write_partial<kWarps>(mass, first_row, count, warp_sums, task.partial);
}

template <typename Element, int kHeadSize, int kBands>
cudaError_t launch_bands(const RecallParams& params, cudaStream_t stream) {
  constexpr int kBytes = sizeof(RecallShared<Element, kHeadSize>);
  const auto kernel = recall_kernel<Element, kHeadSize, kBands>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<recall_grid(params.geometry), kRecallThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename Element, int kHeadSize>
cudaError_t launch_recall(const RecallParams& params, cudaStream_t stream) {
  return with_bands(params.geometry.method.bands, [&](auto bands) {
    return launch_bands<Element, kHeadSize, bands()>(params, stream);
  });
}

}  // namespace rainfusion::sm90
