// The work of a CTA in shared memory: tiles, barriers and what the producer tells the consumers.
#pragma once

#include "common/geometry.h"
#include "sm90/barrier.cuh"

namespace rainfusion::sm90 {

constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kGroupRows = 64;      // query rows of a consumer warpgroup

// A tile in shared memory, as wgmma reads it and the copy engine writes it: columns of rows with 64
// or (where 64 does not divide the head size) 32 elements, 16-byte chunks swizzled in each row.
template <int kHeadSize_, int kRows_>
struct Tile {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kRows = kRows_;
  static constexpr int kColumnElements = kHeadSize % 64 == 0 ? 64 : 32;
  static constexpr int kColumns = kHeadSize / kColumnElements;
  static constexpr int kRowBytes = 2 * kColumnElements;
  static constexpr int kColumnBytes = kRows * kRowBytes;
  static constexpr int kBytes = kColumns * kColumnBytes;
  static constexpr int kRowChunks = kRowBytes / 16;  // of one column
  static constexpr int kChunks = kColumns * kRowChunks;

  // Byte offset of a row's 16-byte chunk.
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    const int key = kRowChunks == 8 ? row & 7 : (row >> 1) & 3;
    return chunk / kRowChunks * kColumnBytes + row * kRowBytes + ((chunk % kRowChunks ^ key) << 4);
  }
};

// What the consumers compute next: a query block.
struct Work {
  static constexpr int kEnd = -1;

  int tiles;  // of keys, 0 where the block attends to nothing; kEnd after the last block
  int batch;
  int head;
  int begin;  // its first token
  int rows;   // and how many it has
};

// The first named barrier of each use; every consumer warpgroup has one of its own.
constexpr int kMaxConsumers = 3;
enum NamedBarrier { kTurnBarrier = 1, kGroupBarrier = kTurnBarrier + kMaxConsumers };

// How a CTA uses its multiprocessor: tiles are blocks. Three consumers of 160 registers a thread
// and a producer of 32 fill its register file; the tiles of four stages fit at every head size.
template <int kHeadSize_>
struct KernelShape {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kQueries = block_shape(kHeadSize).q;
  static constexpr int kKeys = block_shape(kHeadSize).k;
  static constexpr int kConsumers = kQueries / kGroupRows;
  static constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
  static constexpr int kStages = 4;
  static constexpr int kProducerRegisters = 32;
  static constexpr int kConsumerRegisters = 160;
  static_assert(kQueries % kGroupRows == 0 && kConsumers <= kMaxConsumers,
                "consumers share the rows of a block");
  static_assert(kGroupThreads * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536,
                "a multiprocessor has no more registers");
};

template <typename Shape>
using QueryTile = Tile<Shape::kHeadSize, Shape::kQueries>;
template <typename Shape>
using KeyTile = Tile<Shape::kHeadSize, Shape::kKeys>;

template <typename Shape>
struct Shared {
  static constexpr int kRing = Shape::kStages;
  static constexpr int kConsumerWarps = Shape::kConsumers * kGroupThreads / 32;

  alignas(1024) char q[QueryTile<Shape>::kBytes];
  alignas(1024) char k[kRing][KeyTile<Shape>::kBytes];
  alignas(1024) char v[kRing][KeyTile<Shape>::kBytes];
  Barrier q_full;
  Barrier q_empty;
  Barrier k_full[kRing];
  Barrier k_empty[kRing];
  Barrier v_full[kRing];
  Barrier v_empty[kRing];
  int valid[kRing];  // keys in the stage's tile, the others are to be ignored
  Work work;

  __device__ void initialise() {
    barrier_init(q_full, 1);
    barrier_init(q_empty, kConsumerWarps);
    for (int stage = 0; stage < kRing; ++stage) {
      barrier_init(k_full[stage], 1);
      barrier_init(v_full[stage], 1);
      barrier_init(k_empty[stage], kConsumerWarps);
      barrier_init(v_empty[stage], kConsumerWarps);
    }
    fence_barrier_init();
  }
};

}  // namespace rainfusion::sm90
