// A tile in shared memory as the copy engine writes it and the tensor cores read it.
#pragma once

#include <cstdint>

namespace rainfusion::tma {

// Columns of rows with 64 or (where 64 does not divide the head size) 32 elements, 16-byte chunks
// swizzled in each row.
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

}  // namespace rainfusion::tma
