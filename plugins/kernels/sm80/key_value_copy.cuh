// Copies of key and value tiles into shared memory, from where K and V lie.
#pragma once

#include "sm80/key_tiles.cuh"
#include "sm80/tile.cuh"

namespace rainfusion::sm80 {

// The rows of a head as a thread copies them. Token strides were checked to fit 32 bits in bytes.
template <typename Element, int kHeadSize, typename Span>
__device__ __forceinline__ RowSource<int32_t> head_rows(const void* tensor,
                                                        const RainfusionStrides& strides,
                                                        const Span& q) {
  return row_source<TileShape<Element, kHeadSize>>(
      static_cast<const char*>(tensor) + head_offset<Element>(strides, q),
      static_cast<int32_t>(ElementTraits<Element>::kBytes * strides.token));
}

template <typename Config>
struct KeyValueCopy {
  using Element = typename Config::Element;
  static constexpr int kTileN = Config::kTileN;
  static constexpr int kHeadSize = Config::kHeadSize;
  using Shape = TileShape<Element, kHeadSize>;
  using Tiles = KeyTiles<kTileN>;

  RowSource<int32_t> keys;
  RowSource<int32_t> values;
  RowSource<int32_t> gathered_keys;
  RowSource<int32_t> gathered_values;
  uint32_t shared;  // the CTA's shared memory, at this thread's place in a tile

  __device__ KeyValueCopy(const AttentionParams& p, const QuerySpan& q, char* smem)
      : keys(head_rows<Element, kHeadSize>(p.k, p.k_strides, q)),
        values(head_rows<Element, kHeadSize>(p.v, p.v_strides, q)),
        gathered_keys(gathered_rows(p.gathered_k, p, q)),
        gathered_values(gathered_rows(p.gathered_v, p, q)),
        shared(shared_address(smem) + copy_offset<Shape>()) {}

  __device__ __forceinline__ void copy_keys(const Tiles& tiles, int stage) const {
    copy(Config::kKeyOffset + stage * Config::kTileBytes, keys, gathered_keys, tiles);
  }

  __device__ __forceinline__ void copy_values(const Tiles& tiles, int stage) const {
    copy(Config::kValueOffset + stage * Config::kTileBytes, values, gathered_values, tiles);
  }

 private:
  static __device__ __forceinline__ RowSource<int32_t> gathered_rows(const void* tensor,
                                                                     const AttentionParams& p,
                                                                     const QuerySpan& q) {
    return head_rows<Element, kHeadSize>(tensor, p.gathered_strides(kHeadSize), q);
  }

  __device__ __forceinline__ void copy(int offset, const RowSource<int32_t>& source,
                                       const RowSource<int32_t>& gathered,
                                       const Tiles& tiles) const {
    const RowSource<int32_t> rows{tiles.gathered ? gathered.base : source.base,
                                  tiles.gathered ? gathered.stride : source.stride};
    copy_rows<Shape, kTileN>(shared + offset, rows, tiles.start, tiles.valid());
  }
};

}  // namespace rainfusion::sm80
