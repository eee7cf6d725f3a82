// How the portable 8-bit kernel uses a multiprocessor, and its work in shared memory.
#pragma once

#include "common/eight_bit.h"
#include "common/params.h"
#include "common/ptx.cuh"
#include "eight_bit/work.cuh"

namespace rainfusion::sm89 {

// A CTA takes a query tile, a warp 16 rows of it: as many as 168 registers hold in scores and
// output, with three warps for every scheduler to choose from.
template <typename Element_, int kHeadSize_>
struct Shape {
  using Element = Element_;  // of the output
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kKeys = eight_bit::keys_of(kHeadSize);
  static constexpr int kSteps = kKeys / eight_bit::kStepKeys;  // of a product with values
  static constexpr int kWarpRows = 16;
  static constexpr int kThreads = eight_bit::kQueries / kWarpRows * 32;
  static constexpr int kStages = 2;
  static constexpr int kQueryBytes = eight_bit::kQueries * kHeadSize;
  static constexpr int kKeyBytes = kKeys * kHeadSize;
};

// Tiles lie as in the workspace: common/eight_bit.h. What a tile is asked for, or the end of the
// block, would cost registers in the loop.
template <typename Shape>
struct Shared {
  alignas(128) uint8_t q[Shape::kQueryBytes];
  alignas(128) uint8_t k[Shape::kStages][Shape::kKeyBytes];
  alignas(128) uint8_t v[Shape::kStages][Shape::kKeyBytes];
  alignas(16) float q_factor[eight_bit::kQueries];
  eight_bit::KeyTile k_tile[Shape::kStages];
  alignas(16) float bias[Shape::kStages][Shape::kKeys];  // of pseudo-keys, to base 2
  uint32_t words[kMaxMaskWords];                         // key blocks, a bit each, but the own one
  bool begin_with_own;
  eight_bit::QueryWork query;
};

// By the CTA: starts the copy of a run of whole chunks.
template <int kBytes, int kThreads>
__device__ __forceinline__ void copy_run(void* shared, const void* global) {
  static_assert(kBytes % kChunkBytes == 0, "chunks are copied");
  constexpr int kChunks = kBytes / kChunkBytes;
  const uint32_t to = shared_address(shared);
  const char* from = static_cast<const char*>(global);
#pragma unroll
  for (int first = 0; first < kChunks; first += kThreads) {
    const int chunk = first + static_cast<int>(threadIdx.x);
    if (kChunks - first >= kThreads || chunk < kChunks) {
      copy_async_16(to + chunk * kChunkBytes, from + chunk * kChunkBytes, true);
    }
  }
}

}  // namespace rainfusion::sm89
