// Attention of all heads, whatever their kinds, in one launch on Hopper (sm_90a).
//
// FlashAttention-3's structure: a persistent CTA of one producer and three consumer warpgroups. The
// producer takes query blocks from a queue on the device, long ones first, and runs ahead of the
// consumers, so that a block's first tiles arrive while the last block is finished.
#pragma once

#include "sm90/consumer.cuh"
#include "sm90/producer.cuh"

namespace rainfusion::sm90 {

template <typename Element, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<Shape>*>(memory);
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / kGroupThreads, 0);
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Shape::kProducerRegisters));
    if (threadIdx.x < 32) Producer<Shape>(params, shared).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Shape::kConsumerRegisters));
    Consumer<Element, Shape>(params.attention, shared, group - 1).run();
  }
}

template <typename Element>
constexpr RainfusionDtype kDtype = RAINFUSION_FLOAT16;
template <>
constexpr RainfusionDtype kDtype<__nv_bfloat16> = RAINFUSION_BFLOAT16;

// Describes the tensors to the copy engine.
template <typename Shape>
cudaError_t encode_tensors(RainfusionDtype dtype, Params* params) {
  constexpr int kHeadSize = Shape::kHeadSize;
  constexpr int kColumn = QueryTile<Shape>::kColumnElements;
  const AttentionParams& p = params->attention;
  const auto encode = [&](CUtensorMap* map, const void* tensor, const RainfusionStrides& strides,
                          int32_t tokens, int rows) {
    const TensorExtents extents{p.batch, p.heads, tokens, kHeadSize};
    return encode_tensor_map(map, tensor, strides, extents, dtype, kColumn, rows);
  };
  const int32_t tokens = p.q_cut.tokens;
  cudaError_t error = encode(&params->q, p.q, p.q_strides, tokens, Shape::kQueries);
  if (error == cudaSuccess) error = encode(&params->k, p.k, p.k_strides, tokens, Shape::kKeys);
  if (error == cudaSuccess) error = encode(&params->v, p.v, p.v_strides, tokens, Shape::kKeys);
  if (error != cudaSuccess || p.gathered_k == nullptr) return error;
  const int64_t head = static_cast<int64_t>(p.gathered_rows) * kHeadSize;
  const RainfusionStrides gathered{p.heads * head, head, kHeadSize};
  error = encode(&params->gathered_k, p.gathered_k, gathered, p.gathered_rows, Shape::kKeys);
  if (error != cudaSuccess) return error;
  return encode(&params->gathered_v, p.gathered_v, gathered, p.gathered_rows, Shape::kKeys);
}

}  // namespace rainfusion::sm90

namespace rainfusion {

template <typename Element, int kHeadSize>
cudaError_t launch_attention_sm90(const AttentionParams& attention, cudaStream_t stream) {
  using Shape = sm90::KernelShape<kHeadSize>;
  const int32_t items = attention.batch * attention.heads * attention.q_cut.blocks;
  sm90::Params params{{}, {}, {}, {}, {}, attention, items};
  cudaError_t error = sm90::encode_tensors<Shape>(sm90::kDtype<Element>, &params);
  if (error != cudaSuccess) return error;
  int device = 0;
  int processors = 0;
  error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const auto kernel = sm90::attention_kernel<Element, Shape>;
  constexpr int kBytes = sizeof(sm90::Shared<Shape>);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int ctas = params.items < processors ? params.items : processors;
  kernel<<<ctas, Shape::kThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace rainfusion
