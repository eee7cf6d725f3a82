// 8-bit attention of all heads in one launch on Hopper (sm_90a): the structure of
// sm90/attention.cuh on tiles that were rounded before.

#include "common/variants.h"
#include "sm90/eight_bit/consumer.cuh"
#include "sm90/eight_bit/launch.h"
#include "sm90/eight_bit/producer.cuh"
#include "sm90/persistent.h"

namespace rainfusion::sm90 {
namespace {

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    eight_bit_attention_kernel(const __grid_constant__ EightBitParams params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<EightBitShared<Shape>*>(memory);
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / kGroupThreads, 0);
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Shape::kProducerRegisters));
    if (threadIdx.x < 32) EightBitProducer<Shape>(params, shared).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Shape::kConsumerRegisters));
    EightBitConsumer<Shape>(params, shared, group - 1).run();
  }
}

constexpr int kSharedBytes = 227 * 1024;  // that a CTA may have

}  // namespace

cudaError_t launch_eight_bit_attention(const Geometry& geometry, const EightBitParams& params,
                                       cudaStream_t stream) {
  const int32_t items = geometry.batch_heads() * params.q_tiles;  // at most
  return with_variant(geometry.dtype, geometry.head_size, [&](auto element, auto head_size) {
    if constexpr (eight_bit::has_head_size(head_size())) {
      using Shape = EightBitShape<typename decltype(element)::Type, head_size()>;
      static_assert(sizeof(EightBitShared<Shape>) <= kSharedBytes, "fits a multiprocessor");
      return launch_persistent(eight_bit_attention_kernel<Shape>, Shape::kThreads,
                               sizeof(EightBitShared<Shape>), items, params, stream);
    } else {
      return cudaErrorInvalidValue;
    }
  });
}

}  // namespace rainfusion::sm90
