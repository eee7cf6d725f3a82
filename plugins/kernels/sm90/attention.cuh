// Attention of all heads, whatever their kinds, in one launch on Hopper (sm_90a).
//
// FlashAttention-3's structure: a persistent CTA of one producer and two consumer warpgroups, or of
// two such teams that share the producer's warps. The producer takes query blocks from a queue on
// the device, long ones first, and runs ahead of the consumers, so that a block's first tiles
// arrive while the last block is finished.
#pragma once

#include "consumer.cuh"
#include "producer.cuh"

namespace rainfusion::sm90 {

template <typename Element, typename Shape>
__global__ void __launch_bounds__(kCtaThreads<Shape>, 1)
    attention_kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) char memory[];
  auto* shared = reinterpret_cast<Shared<Shape>*>(memory);  // a team's each
  if (threadIdx.x < Shape::kTeams) shared[threadIdx.x].initialise();
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / kGroupThreads, 0);
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Shape::kProducerRegisters));
    const int place = threadIdx.x % kGroupThreads / kProducerThreads<Shape>;
    const int team = Shape::kTeams == 1 ? 0 : __shfl_sync(0xffffffffu, place, 0);
    Producer<Shape>(params, shared[team], team).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Shape::kConsumerRegisters));
    const int team = Shape::kTeams == 1 ? 0 : (group - 1) / kConsumers;
    Consumer<Element, Shape>(params.attention, shared[team], team, (group - 1) % kConsumers).run();
  }
}

template <typename Element>
constexpr RainfusionDtype kDtype = RAINFUSION_FLOAT16;
template <>
constexpr RainfusionDtype kDtype<__nv_bfloat16> = RAINFUSION_BFLOAT16;

// Describes q, k and v to the copy engine.
template <typename Shape>
cudaError_t encode_tensors(RainfusionDtype dtype, Params* params) {
  constexpr int kColumn = QueryTile<Shape>::kColumnElements;
  constexpr int kHeadSize = Shape::kHeadSize;
  constexpr int kKeys = Shape::kKeys;
  const AttentionParams& p = params->attention;
  cudaError_t error =
      encode_tensor_map(&params->q, p.q, p.q_strides, p, dtype, kHeadSize, kColumn, kQueries);
  if (error != cudaSuccess) return error;
  error = encode_tensor_map(&params->k, p.k, p.k_strides, p, dtype, kHeadSize, kColumn, kKeys);
  if (error != cudaSuccess) return error;
  return encode_tensor_map(&params->v, p.v, p.v_strides, p, dtype, kHeadSize, kColumn, kKeys);
}

template <typename Element, typename Shape>
cudaError_t launch(const AttentionParams& attention, cudaStream_t stream) {
  Params params{{}, {}, {}, attention, attention.batch * attention.heads * attention.cut.blocks};
  cudaError_t error = encode_tensors<Shape>(kDtype<Element>, &params);
  if (error != cudaSuccess) return error;
  int device = 0;
  int processors = 0;
  error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const auto kernel = attention_kernel<Element, Shape>;
  constexpr int kBytes = Shape::kTeams * sizeof(Shared<Shape>);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int ctas = params.items < processors ? params.items : processors;
  kernel<<<ctas, kCtaThreads<Shape>, kBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace rainfusion::sm90

namespace rainfusion {

template <typename Element, int kHeadSize>
cudaError_t launch_attention_sm90(const AttentionParams& attention, cudaStream_t stream) {
  if constexpr (kHeadSize == 64) {
    if (attention.textural_rows == nullptr) {
      return sm90::launch<Element, sm90::TeamShape<kHeadSize, 2>>(attention, stream);
    }
  }
  return sm90::launch<Element, sm90::TeamShape<kHeadSize, 1>>(attention, stream);
}

}  // namespace rainfusion
