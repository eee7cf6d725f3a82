// The work of a CTA in shared memory: tiles, barriers and what the producer tells the consumers.
//
// `Shape` says how an architecture's kernel uses a multiprocessor: Element, kHeadSize, kQueries and
// kKeys (rows of its tiles), kStages, kConsumerWarps (each gives a tile back by one arrival), and
// kWindows (whether it is a kernel by windows).
#pragma once

#include <type_traits>

#include "common/query_items.cuh"
#include "tma/barrier.cuh"
#include "tma/tile.cuh"

namespace rainfusion::tma {

// What `valid` of a stage says in a kernel by windows, beside the number of keys.
enum TileCode : int {
  kTileKeys = 0xffff,    // these bits are the number of keys, which come first
  kTileBias = 1 << 16,   // every key has a bias instead
  kTileClean = 1 << 17,  // values of what is no key are finite
  kTileRows = 1 << 18,   // values of keys whose bit of `rows` is not set are to be ignored
  kTileNan = 1 << 19,    // keys whose bias is -infinity may be NaN
};

// What a kernel by windows needs beside the tiles.
template <int kRing, int kKeys, int kConsumerWarps>
struct WindowStages {
  static constexpr int kRowWords = (kKeys + 31) / 32;

  // Added to scores before they are scaled; -infinity where there is no key. A ring of its own,
  // which tiles with a bias alone go round: all lanes of the producer write, and all threads of the
  // consumers read.
  alignas(16) float bias[kRing][kKeys];
  Barrier bias_full[kRing];
  Barrier bias_empty[kRing];
  int rows[kRing][kRowWords];  // a bit a key; written and read with the values

  __device__ void initialise_windows() {
    for (int stage = 0; stage < kRing; ++stage) {
      barrier_init(bias_full[stage], 32);
      barrier_init(bias_empty[stage], kConsumerWarps * 32);
    }
  }
};
struct NoStages {
  __device__ void initialise_windows() {}
};

template <typename Shape>
using QueryTile = Tile<typename Shape::Element, Shape::kHeadSize, Shape::kQueries>;
template <typename Shape>
using KeyTile = Tile<typename Shape::Element, Shape::kHeadSize, Shape::kKeys>;

template <typename Shape>
struct Shared
    : std::conditional_t<Shape::kWindows,
                         WindowStages<Shape::kStages, Shape::kKeys, Shape::kConsumerWarps>,
                         NoStages> {
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
    this->initialise_windows();
    fence_barrier_init();
  }
};

}  // namespace rainfusion::tma
