// Attention of heads that are computed in windows: exact keys where a window was chosen, one
// pseudo-key for each of the others, in one online softmax (sm_80 and newer).
//
// The loop is that of all heads (attend.cuh). Tokens stay where they lie: a row of a tile finds its
// token by the window's box. A call whose heads are all dense, which is known on the device alone,
// runs here too, on runs of tokens.
#pragma once

#include <cuda_runtime.h>

#include "sm80/attend.cuh"
#include "sm80/launch.h"
#include "sm80/window_copy.cuh"
#include "sm80/write_output.cuh"

namespace rainfusion::sm80 {

// Behind the tiles in shared memory: what would cost registers.
template <int kTileN>
struct WindowShared {
  BoxTable<kTileN> table;
  WindowSpan span;
  WindowKeys keys;
  WindowQueue queues[kThreads / 32];
};

template <typename Element, int kHeadSize, int kStages>
struct WindowConfig : TileConfig<Element, kHeadSize, kStages> {
  using Tiles = TileConfig<Element, kHeadSize, kStages>;
  static constexpr int kSharedBytes = Tiles::kTilesEnd + sizeof(WindowShared<Tiles::kTileN>);
  // Of the 100 KB of compute capabilities 8.6, 8.9 and 12.x, each CTA costs one more.
  static_assert(kStages == 2 || kHeadSize == 128 ||
                    Tiles::kCtas * (kSharedBytes + 1024) <= 100 * 1024,
                "two CTAs fit everywhere");
};

template <typename Config>
__device__ __forceinline__ void attend_windows(const WindowParams& params,
                                               WindowShared<Config::kTileN>& shared,
                                               Accumulators<Config>& acc, char* smem) {
  using Element = typename Config::Element;
  using Shape = typename Config::Shape;
  const AttentionParams& p = params.attention;
  const WindowSpan& q = shared.span;
  WindowTiles<Config> tiles(params, q, shared.keys, shared.queues[threadIdx.x / 32]);
  const WindowCopy<Config> copies{shared_address(smem) + copy_offset<Shape>(), shared.table};
  const bool more = tiles.first(params.k);

  copy_queries<Shape>(copies.shared, head_rows<Element, Config::kHeadSize>(p.q, p.q_strides, q), q);
  if (more) copies.copy_keys(tiles, 0);
  if (more && Config::kStages == 2) copies.copy_values(tiles, 0);
  copy_async_commit();
  attend_tiles<Config>(acc, smem, copies, tiles, params.k, p.softmax_scale * kLog2E, more);
}

// As write_output, for rows that are tokens here and there.
template <typename Element, int kHeadSize>
__device__ __forceinline__ void write_windows(const WindowParams& params, const WindowSpan& q,
                                              float (&o)[kWarpTiles][kHeadSize / 8][4],
                                              const RowStatistics& statistics, char* tile) {
  using Shape = TileShape<Element, kHeadSize>;
  constexpr int kBytes = ElementTraits<Element>::kBytes;
  const AttentionParams& p = params.attention;
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 * 32;
  int token;  // of the lane's row
  if (!q.find(warp_row + lane, &token)) token = -1;
  float sums[kWarpTiles * 2];
#pragma unroll
  for (int r = 0; r < kWarpTiles * 2; ++r) {
    sums[r] = quad_sum(statistics.sum[r]);
    const int found = __shfl_sync(0xffffffffu, token, r * 8 + lane / 4);
    if (p.lse != nullptr && lane % 4 == 0 && found >= 0) {
      const int64_t head = static_cast<int64_t>(q.batch) * p.heads + q.head;
      p.lse[head * p.q_cut.tokens + found] =
          sums[r] > 0.f ? statistics.maximum[r] * p.softmax_scale + logf(sums[r]) : -INFINITY;
    }
  }
  normalize<Element, kHeadSize>(o, sums, tile);
  __syncwarp();
  char* out = static_cast<char*>(p.out) + head_offset<Element>(p.out_strides, q);
#pragma unroll
  for (int i = lane; i < 32 * Shape::kChunks; i += 32) {
    const int row = i / Shape::kChunks;
    const int chunk = i % Shape::kChunks;
    const int found = __shfl_sync(0xffffffffu, token, row);
    if (found >= 0) {
      *reinterpret_cast<uint4*>(out + kBytes * found * p.out_strides.token + chunk * kChunkBytes) =
          *reinterpret_cast<const uint4*>(tile + Shape::offset(warp_row + row, chunk));
    }
  }
}

template <typename Config>
__global__ void __launch_bounds__(kThreads, Config::kCtas)
    window_attention_kernel(const __grid_constant__ WindowParams params) {
  extern __shared__ __align__(1024) char smem[];
  auto& shared = *reinterpret_cast<WindowShared<Config::kTileN>*>(smem + Config::kTilesEnd);
  fill_table(shared.table, params.k);
  if (threadIdx.x == 0) {
    shared.span = WindowSpan(params, blockIdx.x);
    if (shared.span.rows > 0) {
      shared.keys =
          WindowKeys::of<typename Config::Element, Config::kHeadSize>(params, shared.span);
    }
  }
  __syncthreads();
  if (shared.span.rows == 0) return;
  Accumulators<Config> acc;
  acc.statistics.reset();
  attend_windows<Config>(params, shared, acc, smem);
  copy_async_wait<0>();
  __syncthreads();  // without keys the query tile is still on its way
  write_windows<typename Config::Element, Config::kHeadSize>(params, shared.span, acc.o,
                                                             acc.statistics, smem);
}

template <typename Config>
cudaError_t launch_window_config(const WindowParams& params, cudaStream_t stream) {
  const auto kernel = window_attention_kernel<Config>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (error != cudaSuccess) return error;
  const AttentionParams& p = params.attention;
  const unsigned ctas =
      static_cast<unsigned>(p.batch) * p.heads * static_cast<unsigned>(WindowSpan::most(params));
  kernel<<<ctas, kThreads, Config::kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename Element, int kHeadSize>
cudaError_t launch_window_attention(const AttentionParams& params, int capability,
                                    cudaStream_t stream) {
  const WindowParams windows(params);
  if constexpr (kHeadSize == 96) {
    if (!has_small_memory(capability)) {
      return launch_window_config<WindowConfig<Element, kHeadSize, 2>>(windows, stream);
    }
  }
  return launch_window_config<WindowConfig<Element, kHeadSize, 1>>(windows, stream);
}

}  // namespace rainfusion::sm80
