// The work of a CTA in shared memory: tiles, barriers and what the producer tells the consumers.
#pragma once

#include "barrier.cuh"

namespace rainfusion::sm90 {

constexpr int kQueries = 128;       // rows of a query tile
constexpr int kConsumers = 2;       // warpgroups, each with half of the query rows
constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kConsumerThreads = kConsumers * kGroupThreads;
constexpr int kConsumerWarps = kConsumerThreads / 32;

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

// How a CTA uses its multiprocessor. A team is two consumer warpgroups with one query block.
// Registers are a thread's; those of a CTA must fit 65,536.
template <int kHeadSize, int kTeams>
struct TeamShape;

template <int kHeadSize_>
struct TeamShape<kHeadSize_, 1> {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kTeams = 1;
  static constexpr int kKeys = 128;  // of a tile; divides a block
  static constexpr int kStages = kHeadSize == 64 ? 4 : kHeadSize == 96 ? 3 : 2;  // as many as fit
  static constexpr bool kGathers = true;  // whether heads may be textural
  static constexpr int kProducerRegisters = 56;
  static constexpr int kConsumerRegisters = 224;
};

// At small head sizes a tile has little tensor-core work for its exponentials, and it takes four
// warpgroups to hide them. They leave too few registers for tiles of 128 keys, and for a producer
// that gathers rows fast enough.
template <int kHeadSize_>
struct TeamShape<kHeadSize_, 2> {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kTeams = 2;
  static constexpr int kKeys = 64;
  static constexpr int kStages = 4;
  static constexpr bool kGathers = false;
  static constexpr int kProducerRegisters = 32;
  static constexpr int kConsumerRegisters = 112;
};

template <typename Shape>
using QueryTile = Tile<Shape::kHeadSize, kQueries>;
template <typename Shape>
using KeyTile = Tile<Shape::kHeadSize, Shape::kKeys>;

// Threads of the producer that bring one team's tiles.
template <typename Shape>
constexpr int kProducerThreads = kGroupThreads / Shape::kTeams;
template <typename Shape>
constexpr int kCtaThreads = Shape::kTeams * kConsumerThreads + kGroupThreads;

template <typename Shape>
struct Shared {
  static constexpr int kRing = Shape::kStages;
  alignas(1024) char q[QueryTile<Shape>::kBytes];
  alignas(1024) char k[kRing][KeyTile<Shape>::kBytes];
  alignas(1024) char v[kRing][KeyTile<Shape>::kBytes];
  alignas(1024) char out[QueryTile<Shape>::kBytes];
  Barrier q_full;
  Barrier q_empty;
  Barrier k_full[kRing];
  Barrier k_empty[kRing];
  Barrier v_full[kRing];
  Barrier v_empty[kRing];
  int valid[kRing];  // keys in the stage's tile, the others are to be ignored
  Work work;
  ProducerTurn<kRing> turns[2];  // two, so that a slow warp can still read the last one

  // A tile of K or V is full when one thread has said what it is, and all that may gather have.
  static constexpr uint32_t kFullArrivals = 1 + (Shape::kGathers ? kProducerThreads<Shape> : 0);

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

// The first of a team's named barriers; those of warpgroups have two.
enum NamedBarrier { kProducerBarrier = 1, kTurnBarrier = 2, kGroupBarrier = 4, kTeamBarriers = 6 };

}  // namespace rainfusion::sm90
