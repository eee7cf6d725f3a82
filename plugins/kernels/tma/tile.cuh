// A tile in shared memory as the copy engine writes it and the tensor cores read it.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace rainfusion::tma {

// Columns of rows as wide as a swizzle: 128 bytes or, where these do not divide a head's row, 64.
// The 16-byte chunks are swizzled in each row.
template <typename Element, int kHeadSize_, int kRows_>
struct Tile {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kRows = kRows_;
  static constexpr int kHeadBytes = kHeadSize * ElementTraits<Element>::kBytes;
  static constexpr int kRowBytes = kHeadBytes % 128 == 0 ? 128 : 64;
  static_assert(kHeadBytes % kRowBytes == 0, "columns are as wide as a swizzle");
  static constexpr int kColumns = kHeadBytes / kRowBytes;
  static constexpr int kColumnElements = kRowBytes / ElementTraits<Element>::kBytes;
  static constexpr int kColumnBytes = kRows * kRowBytes;
  static constexpr int kBytes = kColumns * kColumnBytes;
  static constexpr int kRowChunks = kRowBytes / kChunkBytes;  // of one column
  static constexpr int kChunks = kColumns * kRowChunks;

  // Byte offset of a row's 16-byte chunk.
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    const int key = kRowChunks == 8 ? row & 7 : (row >> 1) & 3;
    return chunk / kRowChunks * kColumnBytes + row * kRowBytes + ((chunk % kRowChunks ^ key) << 4);
  }
};

}  // namespace rainfusion::tma
