// Copies of key and value tiles into shared memory, from where K and V lie.
#pragma once

#include "key_tiles.cuh"
#include "tile.cuh"

namespace rainfusion {

// Offset in bytes of a head's first row.
__device__ __forceinline__ int64_t head_offset(const RainfusionStrides& strides,
                                               const QueryBlock& q) {
  return 2 * (q.batch * strides.batch + q.head * strides.head);
}

// The rows of a head as a thread copies them. Token strides were checked to fit 32 bits in bytes.
template <int kHeadSize>
__device__ __forceinline__ RowSource<int32_t> head_rows(const void* tensor,
                                                        const RainfusionStrides& strides,
                                                        const QueryBlock& q) {
  return row_source<kHeadSize>(static_cast<const char*>(tensor) + head_offset(strides, q),
                               static_cast<int32_t>(2 * strides.token));
}

template <typename Config>
struct KeyValueCopy {
  static constexpr int kTileN = Config::kTileN;
  static constexpr int kHeadSize = Config::kHeadSize;
  using Tiles = KeyTiles<kTileN>;

  RowSource<int32_t> keys;
  RowSource<int32_t> values;
  uint32_t shared;       // the CTA's shared memory, at this thread's place in a tile
  const int32_t* ring;   // row numbers of gathered tiles, in shared memory
  const int32_t* table;  // and where they come from
  bool gathered;

  __device__ KeyValueCopy(const AttentionParams& p, const QueryBlock& q, char* smem, bool gathered_)
      : keys(head_rows<kHeadSize>(p.k, p.k_strides, q)),
        values(head_rows<kHeadSize>(p.v, p.v_strides, q)),
        shared(shared_address(smem) + copy_offset<kHeadSize>()),
        ring(reinterpret_cast<const int32_t*>(smem + Config::kListOffset)),
        table(p.textural_rows),
        gathered(gathered_) {}

  __device__ __forceinline__ void copy_keys(const Tiles& tiles, int stage) const {
    copy(shared + Config::kKeyOffset + stage * Config::kTileBytes, keys, tiles);
    if (gathered && tiles.start + kTileN < tiles.stop) copy_row_numbers(tiles.start + kTileN);
  }

  __device__ __forceinline__ void copy_values(const Tiles& tiles, int stage) const {
    copy(shared + Config::kValueOffset + stage * Config::kTileBytes, values, tiles);
  }

  // Row numbers of the tile at `start` of the table. They are copied one tile ahead.
  __device__ __forceinline__ void copy_row_numbers(int start) const {
    if (threadIdx.x < kTileN / 4) {
      const int place = threadIdx.x * 4;
      copy_async_16(shared_address(ring_slot(start) + place), table + start + place, true);
    }
  }

 private:
  __device__ __forceinline__ const int32_t* ring_slot(int start) const {
    return ring + (start & (Config::kRowRing * kTileN - 1));
  }

  __device__ __forceinline__ void copy(uint32_t tile, const RowSource<int32_t>& source,
                                       const Tiles& tiles) const {
    if (gathered) {
      copy_rows<kHeadSize, kTileN, true>(tile, source, 0, tiles.valid(), ring_slot(tiles.start));
    } else {
      copy_rows<kHeadSize, kTileN, false>(tile, source, tiles.start, tiles.valid(), nullptr);
    }
  }
};

}  // namespace rainfusion
