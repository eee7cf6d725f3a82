// The work of a CTA in shared memory: tiles, barriers and what the producer tells the consumers.
//
// `Shape` says how an architecture's kernel uses a multiprocessor: Element, kHeadSize, kQueries and
// kKeys (rows of its tiles), kStages, and kConsumerWarps (each gives a tile back by one arrival).
#pragma once

#include "tma/barrier.cuh"
#include "tma/tile.cuh"

namespace rainfusion::tma {

// What the consumers compute next: a query block.
struct Work {
  static constexpr int kEnd = -1;

  int tiles;  // of keys, 0 where the block attends to nothing; kEnd after the last block
  int batch;
  int head;
  int begin;  // its first token
  int rows;   // and how many it has
};

template <typename Shape>
using QueryTile = Tile<typename Shape::Element, Shape::kHeadSize, Shape::kQueries>;
template <typename Shape>
using KeyTile = Tile<typename Shape::Element, Shape::kHeadSize, Shape::kKeys>;

template <typename Shape>
struct Shared {
  static constexpr int kRing = Shape::kStages;

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
    barrier_init(q_empty, Shape::kConsumerWarps);
    for (int stage = 0; stage < kRing; ++stage) {
      barrier_init(k_full[stage], 1);
      barrier_init(v_full[stage], 1);
      barrier_init(k_empty[stage], Shape::kConsumerWarps);
      barrier_init(v_empty[stage], Shape::kConsumerWarps);
    }
    fence_barrier_init();
  }
};

}  // namespace rainfusion::tma
