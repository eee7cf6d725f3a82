// How Hopper's attention kernel uses a multiprocessor.
#pragma once

#include "sm90/launch.h"

namespace rainfusion::sm90 {

constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kGroupRows = 64;      // query rows of a consumer warpgroup

// The first named barrier of each use; every consumer warpgroup has one of its own.
constexpr int kMaxConsumers = 3;
enum NamedBarrier { kTurnBarrier = 1, kGroupBarrier = kTurnBarrier + kMaxConsumers };

// Three consumers of 160 registers a thread and a producer of 32 fill the
// register file; the tiles of four stages fit at every head size. Five are 2 % faster by windows of
// small heads.
template <typename Element_, int kHeadSize_, bool kWindows_ = false>
struct KernelShape {
  using Element = Element_;
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr bool kWindows = kWindows_;
  static constexpr int kQueries = tile_shape(kHeadSize).q;
  static constexpr int kKeys = tile_shape(kHeadSize).k;
  static constexpr int kConsumers = kQueries / kGroupRows;
  static constexpr int kConsumerWarps = kConsumers * kGroupThreads / 32;
  static constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
  static constexpr int kStages = kWindows && kHeadSize <= 64 ? 5 : 4;
  static constexpr int kProducerRegisters = 32;
  static constexpr int kConsumerRegisters = 160;
  static_assert(kQueries % kGroupRows == 0 && kConsumers <= kMaxConsumers,
                "consumers share the rows of a tile");
  static_assert(runs(kHeadSize, block_shape(kHeadSize)), "the default is for every kernel");
  static_assert(kGroupThreads * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536,
                "a multiprocessor has no more registers");
};

}  // namespace rainfusion::sm90
