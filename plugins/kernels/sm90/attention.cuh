// Attention of all heads, whatever their kinds, in one launch on Hopper (sm_90a).
//
// FlashAttention-3's structure: a persistent CTA of one producer and three consumer warpgroups. The
// producer takes query blocks from a queue on the device, long ones first, and runs ahead of the
// consumers, so that a block's first tiles arrive while the last block is finished.
#pragma once

#include "sm90/consumer.cuh"
#include "sm90/launch.h"
#include "sm90/persistent.h"
#include "tma/producer.cuh"

namespace rainfusion::sm90 {

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_kernel(const __grid_constant__ tma::Params params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<tma::Shared<Shape>*>(memory);
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / kGroupThreads, 0);
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Shape::kProducerRegisters));
    if (threadIdx.x < 32) tma::Producer<Shape>(params, shared).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Shape::kConsumerRegisters));
    Consumer<Shape>(params.attention, shared, group - 1).run();
  }
}

template <typename Element, int kHeadSize>
cudaError_t launch_attention(const AttentionParams& attention, int, cudaStream_t stream) {
  using Shape = KernelShape<Element, kHeadSize>;
  constexpr tma::TileSizes kTiles{kHeadSize, tma::QueryTile<Shape>::kColumnElements,
                                  Shape::kQueries, Shape::kKeys};
  const int32_t items = attention.batch * attention.heads * attention.q_cut.blocks;
  tma::Params params{{}, {}, {}, {}, {}, attention, items};
  cudaError_t error = tma::describe_tensors(ElementTraits<Element>::kDtype, kTiles, &params);
  if (error != cudaSuccess) return error;
  return launch_persistent(attention_kernel<Shape>, Shape::kThreads, sizeof(tma::Shared<Shape>),
                           items, params, stream);
}

}  // namespace rainfusion::sm90
