// Attention of all heads, whatever their kinds, in one launch (sm_80 and newer).
//
// The loop is in attend.cuh. Query blocks have more rows than a CTA: where it holds rows of two, it
// walks over the keys of both, and a warp skips what its own block does not attend to.
#pragma once

#include <cuda_runtime.h>

#include "sm80/attend.cuh"
#include "sm80/launch.h"
#include "sm80/write_output.cuh"

namespace rainfusion::sm80 {

template <typename Element, int kHeadSize, int kStages>
struct AttentionConfig : TileConfig<Element, kHeadSize, kStages> {
  using Tiles = TileConfig<Element, kHeadSize, kStages>;
  static constexpr int kMaskOffset = Tiles::kTilesEnd;
  static constexpr int kSharedBytes = kMaskOffset + sizeof(StagedMask);
  // Of the 100 KB of compute capabilities 8.6, 8.9 and 12.x, each CTA costs one more.
  static_assert(kStages == 2 || kHeadSize == 128 ||
                    Tiles::kCtas * (kSharedBytes + 1024) <= 100 * 1024,
                "two CTAs fit everywhere");
  static_assert(runs(kHeadSize, block_shape(kHeadSize)), "the default is for every kernel");
};

template <typename Config>
__device__ __forceinline__ void attend(const AttentionParams& p, const QuerySpan& q,
                                       Accumulators<Config>& acc, char* smem) {
  using Shape = typename Config::Shape;
  const KeyList keys(p, q.batch, q.head, q.block, q.begin, q.sink);
  KeyTiles<Config::kTileN> tiles(p, q, keys,
                                 *reinterpret_cast<StagedMask*>(smem + Config::kMaskOffset));
  const KeyValueCopy<Config> copies(p, q, smem);
  const bool more = tiles.first(p.k_cut);

  const auto queries = head_rows<typename Config::Element, Config::kHeadSize>(p.q, p.q_strides, q);
  copy_rows<Shape, kTileM>(copies.shared, queries, q.begin, q.rows);
  if (more) copies.copy_keys(tiles, 0);
  if (more && Config::kStages == 2) copies.copy_values(tiles, 0);
  copy_async_commit();
  attend_tiles<Config>(acc, smem, copies, tiles, p.k_cut, p.softmax_scale * kLog2E, more);
}

template <typename Config>
__global__ void __launch_bounds__(kThreads, Config::kCtas)
    attention_kernel(const __grid_constant__ AttentionParams p) {
  extern __shared__ __align__(1024) char smem[];
  const QuerySpan q(p, blockIdx.x);
  Accumulators<Config> acc;
  acc.statistics.reset();
  attend<Config>(p, q, acc, smem);
  copy_async_wait<0>();
  __syncthreads();  // without keys the query tile is still on its way
  write_output<typename Config::Element, Config::kHeadSize>(p, q, acc.o, acc.statistics, smem);
}

template <typename Config>
cudaError_t launch_config(const AttentionParams& params, cudaStream_t stream) {
  const auto kernel = attention_kernel<Config>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (error != cudaSuccess) return error;
  const unsigned ctas = static_cast<unsigned>(params.batch) * params.heads *
                        static_cast<unsigned>(QuerySpan::count(params.q_cut));
  kernel<<<ctas, kThreads, Config::kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename Element, int kHeadSize>
cudaError_t launch_attention(const AttentionParams& params, int capability, cudaStream_t stream) {
  if constexpr (kHeadSize == 96) {
    // Two stages are faster where two CTAs of them still fit on a multiprocessor.
    if (!has_small_memory(capability)) {
      return launch_config<AttentionConfig<Element, kHeadSize, 2>>(params, stream);
    }
  }
  return launch_config<AttentionConfig<Element, kHeadSize, 1>>(params, stream);
}

}  // namespace rainfusion::sm80
