// The work of a CTA in shared memory: tiles, barriers and what the producer tells the consumers.
#pragma once

#include "barrier.cuh"

namespace rainfusion::sm90 {

constexpr int kTile = 128;          // query rows and keys of a tile
constexpr int kConsumers = 2;       // warpgroups, each with half of the query rows
constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kCtaThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kConsumerWarps = kConsumers * kGroupThreads / 32;

// A tile in shared memory, as wgmma reads it and the copy engine writes it: columns of rows with 64
// or (where 64 does not divide the head size) 32 elements, 16-byte chunks swizzled in each row.
template <int kHeadSize_>
struct Tile {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kColumnElements = kHeadSize % 64 == 0 ? 64 : 32;
  static constexpr int kColumns = kHeadSize / kColumnElements;
  static constexpr int kRowBytes = 2 * kColumnElements;
  static constexpr int kColumnBytes = kTile * kRowBytes;
  static constexpr int kBytes = kColumns * kColumnBytes;
  static constexpr int kRowChunks = kRowBytes / 16;  // of one column
  static constexpr int kChunks = kColumns * kRowChunks;

  // Byte offset of a row's 16-byte chunk.
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    const int key = kRowChunks == 8 ? row & 7 : (row >> 1) & 3;
    return chunk / kRowChunks * kColumnBytes + row * kRowBytes + ((chunk % kRowChunks ^ key) << 4);
  }
};

// What a CTA computes next.
struct Work {
  int item;       // of the order in query_block.cuh; -1 after the last
  int tiles;      // of keys, 0 where the query block attends to nothing
  bool gathered;  // through the table of rows instead of the copy engine
};

// What the leading thread of the producer tells the others.
template <int kStages>
struct ProducerTurn {
  int item;
  RingPlace<kStages> place;
};

// As many stages of K and V as fit beside the query and the output tile.
template <int kHeadSize>
constexpr int kStages = kHeadSize == 128  ? 2
                        : kHeadSize == 96 ? 3
                                          : 4;

template <int kHeadSize>
struct Shared {
  static constexpr int kRing = kStages<kHeadSize>;
  alignas(1024) char q[Tile<kHeadSize>::kBytes];
  alignas(1024) char k[kRing][Tile<kHeadSize>::kBytes];
  alignas(1024) char v[kRing][Tile<kHeadSize>::kBytes];
  alignas(1024) char out[Tile<kHeadSize>::kBytes];
  Barrier q_full;
  Barrier q_empty;
  Barrier k_full[kRing];
  Barrier k_empty[kRing];
  Barrier v_full[kRing];
  Barrier v_empty[kRing];
  int valid[kRing];  // keys in the stage's tile, the others are to be ignored
  Work work;
  ProducerTurn<kRing> turns[2];  // two, so that a slow warp can still read the last one

  // A tile of K or V is full when all threads of the producer have copied, and one has said what.
  static constexpr uint32_t kFullArrivals = kGroupThreads + 1;

  __device__ void initialise() {
    barrier_init(q_full, 1);
    barrier_init(q_empty, kConsumerWarps);
    for (int stage = 0; stage < kRing; ++stage) {
      barrier_init(k_full[stage], kFullArrivals);
      barrier_init(v_full[stage], kFullArrivals);
      barrier_init(k_empty[stage], kConsumerWarps);
      barrier_init(v_empty[stage], kConsumerWarps);
    }
    fence_barrier_init();
  }
};

enum NamedBarrier { kProducerBarrier = 1, kTurnBarrier = 2, kGroupBarrier = 4 };

}  // namespace rainfusion::sm90
