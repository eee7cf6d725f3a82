// Copies of query, key and value tiles into shared memory where heads are computed in windows.
#pragma once

#include <cuda_runtime.h>

#include "sm80/window_tiles.cuh"

namespace rainfusion::sm80 {

// A lane finds a row's token, and its warp hands it around.
template <typename Shape>
__device__ __forceinline__ void copy_queries(uint32_t tile, const RowSource<int32_t>& source,
                                             const WindowSpan& q) {
  constexpr int kWarpPass = 32 / Shape::kThreadsPerRow;  // rows of a warp in a pass
  static_assert(kTileM / Shape::kRowsPerPass * kWarpPass == 32, "a lane a row");
  const int lane = threadIdx.x % 32;
  int token;
  if (!q.find(
          threadIdx.x / 32 * kWarpPass + lane % kWarpPass + lane / kWarpPass * Shape::kRowsPerPass,
          &token)) {
    token = -1;
  }
  copy_rows_at<Shape, kTileM>(tile, source, [&](int row, int* place) {
    const int pass = row / Shape::kRowsPerPass;
    const int found =
        __shfl_sync(0xffffffffu, token, pass * kWarpPass + lane / Shape::kThreadsPerRow);
    *place = max(found, 0);
    return found >= 0;
  });
}

// base + place * stride in one instruction, which the compiler would otherwise take apart again.
__device__ __forceinline__ const char* row_address(const char* base, int place, int32_t stride) {
  int64_t address;
  asm("mad.wide.s32 %0, %1, %2, %3;\n"
      : "=l"(address)
      : "r"(place), "r"(stride), "l"(reinterpret_cast<int64_t>(base)));
  return reinterpret_cast<const char*>(address);
}

template <typename Config>
struct WindowCopy {
  static constexpr int kTileN = Config::kTileN;
  using Shape = typename Config::Shape;
  using Tiles = WindowTiles<Config>;

  uint32_t shared;  // the CTA's shared memory, at this thread's place in a tile
  const BoxTable<kTileN>& table;

  // Two stages ask for a tile's values with its keys: one walk over the rows brings both.
  __device__ __forceinline__ void copy_keys(const Tiles& tiles, int stage) const {
    const Target keys = target(Config::kKeyOffset + stage * Config::kTileBytes, tiles.keys());
    if constexpr (Config::kStages == 2) {
      const Target values =
          target(Config::kValueOffset + stage * Config::kTileBytes, tiles.values());
      copy(tiles, keys, values);
    } else {
      copy(tiles, keys);
    }
  }

  __device__ __forceinline__ void copy_values(const Tiles& tiles, int stage) const {
    if constexpr (Config::kStages == 1) {
      copy(tiles, target(Config::kValueOffset, tiles.values()));
    }
  }

 private:
  static constexpr int kPassRows = Shape::kRowsPerPass;
  static constexpr int kPasses = (kTileN + kPassRows - 1) / kPassRows;

  // A tile, and the tensor that fills it.
  struct Target {
    uint32_t tile;
    const char* base;  // row 0, the thread's first chunk
    int32_t stride;
  };

  __device__ __forceinline__ Target target(int offset, const RowSource<int32_t>& source) const {
    return {shared + offset, row_source<Shape>(source.base, source.stride).base, source.stride};
  }

  template <typename... Targets>
  __device__ __forceinline__ void copy(const Tiles& tiles, const Targets&... targets) const {
    const int lane_row = threadIdx.x / Shape::kThreadsPerRow;
    const int first = tiles.start + lane_row;
    const int left = tiles.valid() - lane_row;
    if (tiles.order == RowOrder::kRun) {
      start_copies(first, left, [&](int row) { return row; }, targets...);
    } else if (tiles.order == RowOrder::kBox) {
      start_copies(tiles.origin, left, [&](int row) { return table[first + row]; }, targets...);
    } else {
      const BoxRows rows = tiles.rows();
      start_copies(0, left, [&](int row) { return rows.token(first + row); }, targets...);
    }
  }

  // `place` says where a row lies behind `origin`, both counted from the thread's first row of the
  // tile; `left` of them are keys. All places are found before the first copy: a read of shared
  // memory between two copies costs.
  template <typename Place, typename... Targets>
  __device__ __forceinline__ void start_copies(int origin, int left, const Place& place,
                                               const Targets&... targets) const {
    const int lane_row = threadIdx.x / Shape::kThreadsPerRow;
    int places[kPasses];
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      places[pass] = 0;
      if (kTileN % kPassRows == 0 || pass * kPassRows + lane_row < kTileN) {
        places[pass] = place(pass * kPassRows);
      }
    }
    (start_copies(row_address(targets.base, origin, targets.stride), left, places, targets), ...);
  }

  __device__ __forceinline__ void start_copies(const char* origin, int left,
                                               const int (&places)[kPasses],
                                               const Target& target) const {
    const int lane_row = threadIdx.x / Shape::kThreadsPerRow;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (kTileN % kPassRows != 0 && pass * kPassRows + lane_row >= kTileN) break;
      const bool keep = pass * kPassRows < left;
      const char* global = row_address(origin, places[pass], target.stride);
      const uint32_t to = target.tile + pass * kPassRows * Shape::kRowBytes;
#pragma unroll
      for (int i = 0; i < Shape::kChunksPerThread; ++i) {
        const int step = i * Shape::kThreadsPerRow * kChunkBytes;
        copy_async_16(to + step, global + step, keep);
      }
    }
  }
};

}  // namespace rainfusion::sm80
