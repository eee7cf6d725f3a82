// How the 8-bit kernel uses a multiprocessor, and its work in shared memory.
#pragma once

#include "common/eight_bit.h"
#include "common/params.h"
#include "sm90/kernel_shape.cuh"
#include "tma/shared.cuh"

namespace rainfusion::sm90 {

// Consumers and registers as those of 16 bits (sm90/kernel_shape.cuh).
template <typename Element_, int kHeadSize_>
struct EightBitShape {
  using Element = Element_;  // of the output
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kQueries = eight_bit::kQueries;
  static constexpr int kKeys = eight_bit::keys_of(kHeadSize);
  static constexpr int kSteps = kKeys / eight_bit::kStepKeys;  // of a product with values
  static constexpr int kConsumers = kQueries / kGroupRows;
  static constexpr int kConsumerWarps = kConsumers * kGroupThreads / 32;
  static constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
  static constexpr int kStages = kHeadSize <= 64 ? 6 : 4;
  static constexpr int kConsumerRegisters = kHeadSize <= 64 ? 152 : 160;
  static constexpr int kProducerRegisters = 512 - kConsumers * kConsumerRegisters;
  static constexpr int kQueryBytes = kQueries * kHeadSize;
  static constexpr int kKeyBytes = kKeys * kHeadSize;
  static_assert(kConsumers <= kMaxConsumers, "consumers share the rows of a tile");
};

template <typename Shape>
struct EightBitShared {
  static constexpr int kRing = Shape::kStages;
  static constexpr int kBiasRing = 2;
  static constexpr int kSumRows = Shape::kHeadSize / 8;  // of four sums of every thread

  alignas(1024) uint8_t q[Shape::kQueryBytes];
  alignas(1024) uint8_t k[kRing][Shape::kKeyBytes];
  alignas(1024) uint8_t v[kRing][Shape::kKeyBytes];
  alignas(16) float4 sums[kSumRows][Shape::kConsumers * kGroupThreads];  // of promoted tiles
  float2 references[Shape::kConsumers * kGroupThreads];
  alignas(16) float q_factor[Shape::kQueries];
  eight_bit::KeyTile k_tile[kRing];
  alignas(16) float bias[kBiasRing][Shape::kKeys];  // of pseudo-keys, to base 2
  tma::Barrier q_full;
  tma::Barrier q_empty;
  tma::Barrier k_full[kRing];
  tma::Barrier k_empty[kRing];
  tma::Barrier v_full[kRing];
  tma::Barrier v_empty[kRing];
  tma::Barrier bias_full[kBiasRing];
  tma::Barrier bias_empty[kBiasRing];
  Work work;

  __device__ void initialise() {
    tma::barrier_init(q_full, 1);
    tma::barrier_init(q_empty, Shape::kConsumerWarps);
    for (int stage = 0; stage < kRing; ++stage) {
      tma::barrier_init(k_full[stage], 1);
      tma::barrier_init(v_full[stage], 1);
      tma::barrier_init(k_empty[stage], Shape::kConsumerWarps);
      tma::barrier_init(v_empty[stage], Shape::kConsumerWarps);
    }
    for (int stage = 0; stage < kBiasRing; ++stage) {
      tma::barrier_init(bias_full[stage], 32);
      tma::barrier_init(bias_empty[stage], Shape::kConsumerWarps);
    }
    tma::fence_barrier_init();
  }
};

}  // namespace rainfusion::sm90
