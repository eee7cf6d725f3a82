// Barriers of a warp-specialised CTA: mbarriers in shared memory, named barriers, and the ring of
// stages that producer and consumers walk around.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"

namespace rainfusion::tma {

using Barrier = uint64_t;  // an mbarrier, in shared memory

__device__ __forceinline__ void barrier_init(Barrier& barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&barrier)),
               "r"(arrivals)
               : "memory");
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(&barrier))
               : "memory");
}

// Arrives and announces bytes that the copy engine will deliver.
__device__ __forceinline__ void barrier_arrive_expect(Barrier& barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(&barrier)),
      "r"(bytes)
      : "memory");
}

__device__ __forceinline__ void barrier_wait(Barrier& barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(&barrier)),
      "r"(phase)
      : "memory");
}

// Orders what the thread wrote to shared memory, or read from it, before what the tensor cores read
// and what the copy engine writes over it.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// The value in the warp's first lane, 0 in the others. Predicated: behind a branch on the lane, the
// compiler no longer knows that the address is the same in all of them.
__device__ __forceinline__ int load_in_first_lane(const int& shared) {
  int value;
  asm volatile(
      "{\n"
      ".reg .pred first;\n"
      "setp.eq.u32 first, %2, 0;\n"
      "mov.b32 %0, 0;\n"
      "@first ld.shared.b32 %0, [%1];\n"
      "}\n"
      : "=&r"(value)
      : "r"(shared_address(&shared)), "r"(threadIdx.x % 32)
      : "memory");
  return value;
}

// A place in the ring: which stage, and the parity of the round.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace rainfusion::tma
