// Tiles of q, k and v in shared memory and the two products of attention on them.
//
// A tile holds rows of D elements. Its 16-byte chunks are swizzled so that eight consecutive
// rows at one logical chunk, as ldmatrix reads them, lie in distinct banks. Every function below
// is written for a CTA of four warps, each of which owns 32 of 128 query rows.
#pragma once

#include "common/element.h"
#include "common/ptx.cuh"
#include "sm80/launch.h"

namespace rainfusion::sm80 {

constexpr int kThreads = kTileM / kWarpRows * 32;
constexpr int kWarpTiles = kWarpRows / 16;  // of 16 rows

template <typename Element, int kHeadSize>
struct TileShape {
  static constexpr int kRowBytes = kHeadSize * ElementTraits<Element>::kBytes;
  static constexpr int kChunks = kRowBytes / kChunkBytes;
  static constexpr bool kByFours = kChunks % 8 != 0;  // chunks are swizzled among eight, or four
  static_assert(kChunks % 4 == 0, "a row is made of whole swizzles");
  static constexpr int kThreadsPerRow = kByFours ? 4 : 8;
  static constexpr int kRowsPerPass = kThreads / kThreadsPerRow;
  static constexpr int kChunksPerThread = kChunks / kThreadsPerRow;

  // Byte offset of a chunk in a tile. Only the low 2 (D = 96) or 3 bits of the chunk change.
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    const int key = kByFours ? (row >> 1) & 3 : row & 7;
    return row * kRowBytes + ((chunk ^ key) << 4);
  }

  // From the address of a lane's chunk c (0 or 1) to that of chunk c + 2 * step.
  static __device__ __forceinline__ uint32_t advance(uint32_t address, int step) {
    return kByFours ? (address ^ ((step & 1) << 5)) + (step >> 1) * 64 : address ^ (step << 5);
  }
};

// Rows of a tensor as a thread of the CTA copies them.
template <typename Stride>
struct RowSource {
  const char* base;  // row 0, the thread's first chunk
  Stride stride;     // bytes between rows
};

template <typename Shape, typename Stride>
__device__ __forceinline__ RowSource<Stride> row_source(const void* rows, Stride stride) {
  const int chunk = threadIdx.x % Shape::kThreadsPerRow;
  return {static_cast<const char*>(rows) + chunk * kChunkBytes, stride};
}

// The thread's place in every tile it copies.
template <typename Shape>
__device__ __forceinline__ uint32_t copy_offset() {
  return Shape::offset(threadIdx.x / Shape::kThreadsPerRow, threadIdx.x % Shape::kThreadsPerRow);
}

// Starts the copy of rows [first, first + valid) to a tile of kRows rows, the rest zeroed.
template <typename Shape, int kRows, typename Stride>
__device__ __forceinline__ void copy_rows(uint32_t tile, const RowSource<Stride>& source, int first,
                                          int valid) {
  const int lane_row = threadIdx.x / Shape::kThreadsPerRow;
#pragma unroll
  for (int pass = 0; pass * Shape::kRowsPerPass < kRows; ++pass) {
    const int row = lane_row + pass * Shape::kRowsPerPass;
    if (kRows % Shape::kRowsPerPass != 0 && row >= kRows) break;
    const bool keep = row < valid;
    const char* global = source.base + static_cast<int64_t>(first + row) * source.stride;
    const uint32_t shared = tile + pass * Shape::kRowsPerPass * Shape::kRowBytes;
#pragma unroll
    for (int i = 0; i < Shape::kChunksPerThread; ++i) {
      const int step = i * Shape::kThreadsPerRow * kChunkBytes;
      copy_async_16(shared + step, global + step, keep);
    }
  }
}

// The same for rows here and there: locate(row, &place) says whether a row of the tile is one of
// the tensor, and which.
template <typename Shape, int kRows, typename Locate>
__device__ __forceinline__ void copy_rows_at(uint32_t tile, const RowSource<int32_t>& source,
                                             const Locate& locate) {
  const int lane_row = threadIdx.x / Shape::kThreadsPerRow;
#pragma unroll
  for (int pass = 0; pass * Shape::kRowsPerPass < kRows; ++pass) {
    const int row = lane_row + pass * Shape::kRowsPerPass;
    if (kRows % Shape::kRowsPerPass != 0 && row >= kRows) break;
    int place = 0;
    const bool keep = locate(row, &place);
    const char* global = source.base + static_cast<int64_t>(place) * source.stride;
    const uint32_t shared = tile + pass * Shape::kRowsPerPass * Shape::kRowBytes;
#pragma unroll
    for (int i = 0; i < Shape::kChunksPerThread; ++i) {
      const int step = i * Shape::kThreadsPerRow * kChunkBytes;
      copy_async_16(shared + step, global + step, keep);
    }
  }
}

// Where a lane reads its 8x8 matrices of a tile.
template <typename Shape>
__device__ __forceinline__ uint32_t query_lane_offset() {  // A operand
  const int lane = threadIdx.x % 32;
  return Shape::offset(threadIdx.x / 32 * 32 + lane % 16, lane / 16);
}

template <typename Shape>
__device__ __forceinline__ uint32_t key_lane_offset() {  // B operand of q k^T
  const int lane = threadIdx.x % 32;
  return Shape::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

template <typename Shape>
__device__ __forceinline__ uint32_t value_lane_offset() {  // B operand of p v, transposed
  const int lane = threadIdx.x % 32;
  return Shape::offset(lane % 16, lane / 16);
}

template <int kTileN>
using Scores = float[kWarpTiles][kTileN / 8][4];

// s = q k^T
template <typename T, int kHeadSize, int kTileN>
__device__ __forceinline__ void multiply_keys(Scores<kTileN>& s, uint32_t query_lane,
                                              uint32_t key_lane) {
  using Shape = TileShape<T, kHeadSize>;
#pragma unroll
  for (int m = 0; m < kWarpTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kTileN / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][n][i] = 0.f;
    }
  }
#pragma unroll
  for (int step = 0; step < Shape::kRowBytes / kStepBytes; ++step) {
    uint32_t a[kWarpTiles][4];
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m) {
      load_matrices(a[m], Shape::advance(query_lane, step) + m * 16 * Shape::kRowBytes);
    }
#pragma unroll
    for (int n = 0; n < kTileN / 16; ++n) {
      uint32_t b[4];
      load_matrices(b, Shape::advance(key_lane, step) + n * 16 * Shape::kRowBytes);
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        multiply_accumulate<T>(s[m][2 * n], a[m], b[0], b[1]);
        multiply_accumulate<T>(s[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// o += p v, p rounded to T
template <typename T, int kHeadSize, int kTileN>
__device__ __forceinline__ void multiply_values(float (&o)[kWarpTiles][kHeadSize / 8][4],
                                                const Scores<kTileN>& p, uint32_t value_lane) {
  using Shape = TileShape<T, kHeadSize>;
#pragma unroll
  for (int step = 0; step < kTileN / 16; ++step) {
    uint32_t a[kWarpTiles][4];
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m) {
      a[m][0] = pack<T>(p[m][2 * step][0], p[m][2 * step][1]);
      a[m][1] = pack<T>(p[m][2 * step][2], p[m][2 * step][3]);
      a[m][2] = pack<T>(p[m][2 * step + 1][0], p[m][2 * step + 1][1]);
      a[m][3] = pack<T>(p[m][2 * step + 1][2], p[m][2 * step + 1][3]);
    }
#pragma unroll
    for (int d = 0; d < kHeadSize / 16; ++d) {
      uint32_t b[4];
      load_matrices_transposed(b, Shape::advance(value_lane, d) + step * 16 * Shape::kRowBytes);
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        multiply_accumulate<T>(o[m][2 * d], a[m], b[0], b[1]);
        multiply_accumulate<T>(o[m][2 * d + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Scores of keys at or past `valid` become -infinity.
template <int kTileN>
__device__ __forceinline__ void mask_keys(Scores<kTileN>& s, int valid) {
  const int lane_column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < kTileN / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool keep = n * 8 + lane_column + i % 2 < valid;
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) s[m][n][i] = keep ? s[m][n][i] : -INFINITY;
    }
  }
}

}  // namespace rainfusion::sm80
