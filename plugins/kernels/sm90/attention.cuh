// Attention of all heads, whatever their kinds, in one launch on Hopper (sm_90a).
//
// FlashAttention-3's structure: a persistent CTA of one producer and two consumer warpgroups. The
// producer takes query blocks from a queue on the device, long ones first, and runs ahead of the
// consumers, so that a block's first tiles arrive while the last block is finished.
#pragma once

#include "consumer.cuh"
#include "producer.cuh"

namespace rainfusion::sm90 {

// Registers a thread; what the roles hold together must fit 65,536.
constexpr int kProducerRegisters = 56;
constexpr int kConsumerRegisters = 224;

template <typename Element, int kHeadSize>
__global__ void __launch_bounds__(kCtaThreads, 1)
    attention_kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<kHeadSize>*>(memory);
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / kGroupThreads, 0);
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kProducerRegisters));
    Producer<kHeadSize>(params, shared).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kConsumerRegisters));
    Consumer<Element, kHeadSize>(params.attention, shared, group - 1).run();
  }
}

template <typename Element>
constexpr RainfusionDtype kDtype = RAINFUSION_FLOAT16;
template <>
constexpr RainfusionDtype kDtype<__nv_bfloat16> = RAINFUSION_BFLOAT16;

// Describes q, k and v to the copy engine.
template <int kHeadSize>
cudaError_t encode_tensors(RainfusionDtype dtype, Params* params) {
  constexpr int kColumn = Tile<kHeadSize>::kColumnElements;
  const AttentionParams& p = params->attention;
  cudaError_t error = encode_tensor_map(&params->q, p.q, p.q_strides, p, dtype, kHeadSize, kColumn);
  if (error != cudaSuccess) return error;
  error = encode_tensor_map(&params->k, p.k, p.k_strides, p, dtype, kHeadSize, kColumn);
  if (error != cudaSuccess) return error;
  return encode_tensor_map(&params->v, p.v, p.v_strides, p, dtype, kHeadSize, kColumn);
}

}  // namespace rainfusion::sm90

namespace rainfusion {

template <typename Element, int kHeadSize>
cudaError_t launch_attention_sm90(const AttentionParams& attention, cudaStream_t stream) {
  sm90::Params params{
      {}, {}, {}, attention, attention.batch * attention.heads * attention.cut.blocks};
  cudaError_t error = sm90::encode_tensors<kHeadSize>(sm90::kDtype<Element>, &params);
  if (error != cudaSuccess) return error;
  int device = 0;
  int processors = 0;
  error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const auto kernel = sm90::attention_kernel<Element, kHeadSize>;
  constexpr int kBytes = sizeof(sm90::Shared<kHeadSize>);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int ctas = params.items < processors ? params.items : processors;
  kernel<<<ctas, sm90::kCtaThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace rainfusion
