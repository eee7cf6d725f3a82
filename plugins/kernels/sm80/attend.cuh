// The loop of a CTA over tiles of keys, whatever they are.
//
// FlashAttention-2's structure: a CTA of four warps holds 128 query rows; keys and values come in
// tiles through cp.async; scores, probabilities and output stay in registers.
#pragma once

#include <cuda_runtime.h>

#include "sm80/launch.h"
#include "sm80/softmax.cuh"

namespace rainfusion::sm80 {

// kStages = 2 copies a whole tile ahead; kStages = 1 copies values after the first product and the
// next keys after the second, in half the shared memory.
template <typename Element_, int kHeadSize_, int kStages_>
struct TileConfig {
  using Element = Element_;
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kStages = kStages_;
  // As large as 255 registers and the shared memory of two CTAs allow.
  static constexpr int kTileN = kHeadSize == 64 ? 128 : kHeadSize == 96 ? 48 : 80;
  static constexpr int kCtas = 2;  // on a multiprocessor; 255 registers a thread

  using Shape = TileShape<Element, kHeadSize>;
  static constexpr int kTileBytes = kTileN * Shape::kRowBytes;
  static constexpr int kKeyOffset = kTileM * Shape::kRowBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * kTileBytes;
  static constexpr int kTilesEnd = kValueOffset + kStages * kTileBytes;
};

// Registers of a CTA's query block.
template <typename Config>
struct Accumulators {
  float o[kWarpTiles][Config::kHeadSize / 8][4] = {};
  RowStatistics statistics;
};

// Addresses that a lane reads its fragments from.
struct FragmentLanes {
  uint32_t query;
  uint32_t key;
  uint32_t value;
};

// Tiles say what follows (advance), which of a tile's columns count (columns, mask) and whether the
// warp attends to it (mine); copies bring them.

// One stage. On entry the first tile's keys, if there are any, are on their way. (An early return
// where there are none would make nvcc 13.0 copy the accumulators once a tile.)
template <typename Config, typename Copies, typename Tiles, typename Cut>
__device__ __forceinline__ void attend_single(Accumulators<Config>& acc, const FragmentLanes& lanes,
                                              const Copies& copies, Tiles& tiles, const Cut& cut,
                                              float scale_log2, bool more) {
  using Element = typename Config::Element;
  constexpr int kHeadSize = Config::kHeadSize;
  constexpr int kTileN = Config::kTileN;
  while (more) {
    Scores<kTileN> s;
    copy_async_wait<0>();
    __syncthreads();  // this tile's keys are here; the last tile's values are used up
    copies.copy_values(tiles, 0);
    copy_async_commit();
    const bool mine = tiles.mine;
    if (mine) {
      multiply_keys<Element, kHeadSize, kTileN>(s, lanes.query, lanes.key);
      tiles.mask(tiles.columns(), s);
    }
    copy_async_wait<0>();
    __syncthreads();  // this tile's values are here; its keys are used up
    more = tiles.advance(cut);
    if (more) copies.copy_keys(tiles, 0);
    copy_async_commit();
    if (mine) {
      softmax_tile<kTileN, kHeadSize>(s, acc.o, acc.statistics, scale_log2);
      multiply_values<Element, kHeadSize, kTileN>(acc.o, s, lanes.value);
    }
  }
}

// Two stages. On entry the first tile's keys and values, if there are any, are on their way.
template <typename Config, typename Copies, typename Tiles, typename Cut>
__device__ __forceinline__ void attend_double(Accumulators<Config>& acc, const FragmentLanes& lanes,
                                              const Copies& copies, Tiles& tiles, const Cut& cut,
                                              float scale_log2, bool more) {
  using Element = typename Config::Element;
  constexpr int kHeadSize = Config::kHeadSize;
  constexpr int kTileN = Config::kTileN;
  int stage = 0;
  for (; more; stage ^= 1) {
    Scores<kTileN> s;
    const auto columns = tiles.columns();
    const bool mine = tiles.mine;
    copy_async_wait<0>();
    __syncthreads();  // this tile is here; the last one is used up
    more = tiles.advance(cut);
    if (more) {
      copies.copy_keys(tiles, stage ^ 1);
      copies.copy_values(tiles, stage ^ 1);
    }
    copy_async_commit();
    if (!mine) continue;
    const uint32_t offset = stage * Config::kTileBytes;
    multiply_keys<Element, kHeadSize, kTileN>(s, lanes.query, lanes.key + offset);
    tiles.mask(columns, s);
    softmax_tile<kTileN, kHeadSize>(s, acc.o, acc.statistics, scale_log2);
    multiply_values<Element, kHeadSize, kTileN>(acc.o, s, lanes.value + offset);
  }
}

// Where a lane's fragments lie in the CTA's shared memory, and the loop for the stages that Config
// has.
template <typename Config, typename Copies, typename Tiles, typename Cut>
__device__ __forceinline__ void attend_tiles(Accumulators<Config>& acc, char* smem,
                                             const Copies& copies, Tiles& tiles, const Cut& cut,
                                             float scale_log2, bool more) {
  using Shape = typename Config::Shape;
  const uint32_t shared = shared_address(smem);
  const FragmentLanes lanes{
      shared + query_lane_offset<Shape>(),
      shared + Config::kKeyOffset + key_lane_offset<Shape>(),
      shared + Config::kValueOffset + value_lane_offset<Shape>(),
  };
  if constexpr (Config::kStages == 1) {
    attend_single<Config>(acc, lanes, copies, tiles, cut, scale_log2, more);
  } else {
    attend_double<Config>(acc, lanes, copies, tiles, cut, scale_log2, more);
  }
}

// Whether a multiprocessor has 100 KB of shared memory, and not more.
inline bool has_small_memory(int capability) {
  return (capability >= 86 && capability <= 89) || capability >= 120;
}

}  // namespace rainfusion::sm80
