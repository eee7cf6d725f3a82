// Attention by windows (method piecewise) in one launch on Hopper (sm_90a).
//
// The kernel of attention.cuh with another producer, whose tiles are boxes of the grid. What a tile
// has besides keys, and the weight of pseudo-keys, is a bias of its columns.
#pragma once

#include "sm90/consumer.cuh"
#include "sm90/launch.h"
#include "sm90/persistent.h"
#include "tma/window_producer.cuh"

namespace rainfusion::sm90 {

// Windows that do not fill their tile leave rows of it as they are: they must be finite.
template <typename Storage>
__device__ __forceinline__ void clear_tiles(Storage& shared) {
  auto* chunks = reinterpret_cast<uint4*>(shared.k);
  constexpr int kChunks = (sizeof(shared.k) + sizeof(shared.v)) / sizeof(uint4);
  for (int i = threadIdx.x; i < kChunks; i += blockDim.x) chunks[i] = uint4{};
  tma::fence_async_proxy();
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    window_attention_kernel(const __grid_constant__ tma::WindowParams params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<tma::Shared<Shape>*>(memory);
  if (threadIdx.x == 0) shared.initialise();
  clear_tiles(shared);
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / kGroupThreads, 0);
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Shape::kProducerRegisters));
    if (threadIdx.x < 32) tma::WindowProducer<Shape>(params, shared).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Shape::kConsumerRegisters));
    Consumer<Shape>(params.attention, shared, group - 1).run();
  }
}

template <typename Element, int kHeadSize>
cudaError_t launch_window_attention(const AttentionParams& attention, int, cudaStream_t stream) {
  using Shape = KernelShape<Element, kHeadSize, true>;
  constexpr tma::TileSizes kTiles{kHeadSize, tma::QueryTile<Shape>::kColumnElements,
                                  Shape::kQueries, Shape::kKeys};
  const int32_t blocks = attention.q_cut.blocks > attention.q_windows.blocks
                             ? attention.q_cut.blocks
                             : attention.q_windows.blocks;
  const int32_t items = attention.batch * attention.heads * blocks;  // at most
  tma::WindowParams params{{{}, {}, {}, {}, {}, attention, items}, {}, {}, {}, {}, {}};
  const cudaError_t error = tma::describe_windows(ElementTraits<Element>::kDtype, kTiles, &params);
  if (error != cudaSuccess) return error;
  return launch_persistent(window_attention_kernel<Shape>, Shape::kThreads,
                           sizeof(tma::Shared<Shape>), items, params, stream);
}

}  // namespace rainfusion::sm90
