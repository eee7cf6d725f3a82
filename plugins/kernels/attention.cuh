// Attention of all heads, whatever their kinds, in one launch (sm_80 and newer).
//
// FlashAttention-2's structure: a CTA of four warps holds one query block; keys and values come in
// tiles through cp.async; scores, probabilities and output stay in registers. Which keys a query
// block attends to is a list of runs: all of them, the blocks of a bit mask, or a table of rows.
#pragma once

#include <cuda_runtime.h>

#include "key_tiles.cuh"
#include "launch.h"
#include "softmax.cuh"
#include "tile.cuh"

namespace rainfusion {

#ifndef RF_STAGES
#define RF_STAGES 1
#endif
#ifndef RF_N64
#define RF_N64 64
#endif
#ifndef RF_QREG64
#define RF_QREG64 1
#endif
#ifndef RF_QREG96
#define RF_QREG96 0
#endif
#ifndef RF_CTAS64
#define RF_CTAS64 2
#endif

template <typename Element_, int kHeadSize_>
struct AttentionConfig {
  using Element = Element_;
  using Shape = TileShape<kHeadSize_>;
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kTileN = kHeadSize == 64 ? RF_N64 : 64;
  static constexpr bool kQueryInRegisters =
      kHeadSize == 64 ? RF_QREG64 : (kHeadSize == 96 ? RF_QREG96 : 0);
  static constexpr int kStages = RF_STAGES;
  static constexpr int kCtas = kHeadSize == 64 ? RF_CTAS64 : 2;
  static constexpr int kRowRing = 4;  // tiles of gathered row numbers on their way

  static constexpr int kQueryBytes = kTileM * Shape::kRowBytes;
  static constexpr int kTileBytes = kTileN * Shape::kRowBytes;
  static constexpr int kKeyOffset = kQueryBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * kTileBytes;
  static constexpr int kListOffset = kValueOffset + kStages * kTileBytes;
  static constexpr int kListBytes = kRowRing * kTileN * 4 > kMaxMaskWords * 4
                                        ? kRowRing * kTileN * 4
                                        : kMaxMaskWords * 4;
  static constexpr int kSharedBytes = kListOffset + kListBytes;
};

// Divides the accumulators by the row sums and writes them as 16-byte chunks through shared memory.
template <typename Config>
__device__ __forceinline__ void write_output(const AttentionParams& p, const QueryBlock& q,
                                             float (&o)[kWarpTiles][Config::kHeadSize / 8][4],
                                             RowStatistics& statistics, char* query_tile) {
  using Element = typename Config::Element;
  using Shape = typename Config::Shape;
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 * 32;
  const int begin = p.cut.begin(q.block);
  const int length = p.cut.end(q.block) - begin;
#pragma unroll
  for (int r = 0; r < kWarpTiles * 2; ++r) {
    const int row = warp_row + r * 8 + lane / 4;
    const float sum = quad_sum(statistics.sum[r]);
    const float inverse = sum > 0.f ? 1.f / sum : 0.f;
    if (p.lse != nullptr && lane % 4 == 0 && row < length) {
      const int64_t offset = (static_cast<int64_t>(q.batch) * p.heads + q.head) * p.cut.tokens;
      p.lse[offset + begin + row] =
          sum > 0.f ? statistics.maximum[r] * p.softmax_scale + logf(sum) : -INFINITY;
    }
#pragma unroll
    for (int d = 0; d < Config::kHeadSize / 8; ++d) {
      const uint32_t pair = pack<Element>(o[r / 2][d][r % 2 * 2] * inverse,
                                          o[r / 2][d][r % 2 * 2 + 1] * inverse);
      *reinterpret_cast<uint32_t*>(query_tile + Shape::offset(row, d) + lane % 4 * 4) = pair;
    }
  }
  __syncwarp();  // a warp reads back its own rows only
  char* out = static_cast<char*>(p.out) +
              2 * (q.batch * p.out_strides.batch + q.head * p.out_strides.head);
#pragma unroll
  for (int i = lane; i < 32 * Shape::kChunks; i += 32) {
    const int row = warp_row + i / Shape::kChunks;
    const int chunk = i % Shape::kChunks;
    if (row < length) {
      const int64_t offset = 2 * (begin + row) * p.out_strides.token + chunk * 16;
      *reinterpret_cast<uint4*>(out + offset) =
          *reinterpret_cast<const uint4*>(query_tile + Shape::offset(row, chunk));
    }
  }
}

template <typename Config>
struct KeyValueCopy {
  static constexpr int kTileN = Config::kTileN;
  static constexpr int kHeadSize = Config::kHeadSize;

  RowSource<int32_t> keys;
  RowSource<int32_t> values;
  uint32_t shared;    // byte address of the CTA's shared memory, at this thread's place in a tile
  const int32_t* ring;  // row numbers of gathered tiles
  const int32_t* table;
  bool gathered;

  __device__ KeyValueCopy(const AttentionParams& p, const QueryBlock& q, char* smem, bool gathered_)
      : keys(row_source<kHeadSize>(static_cast<const char*>(p.k) + 2 * (q.batch * p.k_strides.batch +
                                                                   q.head * p.k_strides.head),
                                   static_cast<int32_t>(2 * p.k_strides.token))),
        values(row_source<kHeadSize>(static_cast<const char*>(p.v) + 2 * (q.batch * p.v_strides.batch +
                                                                   q.head * p.v_strides.head),
                                     static_cast<int32_t>(2 * p.v_strides.token))),
        shared(shared_address(smem) + copy_offset<kHeadSize>()),
        ring(reinterpret_cast<const int32_t*>(smem + Config::kListOffset)),
        table(p.textural_rows),
        gathered(gathered_) {}

  __device__ __forceinline__ int ring_slot(int start) const {
    return start & (Config::kRowRing * kTileN - 1);
  }

  __device__ __forceinline__ void copy(uint32_t tile, const RowSource<int32_t>& source,
                                       const KeyTiles<kTileN>& tiles) const {
    if (gathered) {
      copy_rows<kHeadSize, kTileN, true>(tile, source, 0, tiles.valid(),
                                         ring + ring_slot(tiles.start));
    } else {
      copy_rows<kHeadSize, kTileN, false>(tile, source, tiles.start, tiles.valid(), nullptr);
    }
  }

  // Row numbers of the tile at `start` of the table.
  __device__ __forceinline__ void copy_row_numbers(int start) const {
    if (gathered && threadIdx.x < kTileN / 4) {
      copy_async_16(shared_address(ring + ring_slot(start) + threadIdx.x * 4),
                    table + start + threadIdx.x * 4, true);
    }
  }

  __device__ __forceinline__ void copy_keys(const KeyTiles<kTileN>& tiles, int stage) const {
    copy(shared + Config::kKeyOffset + stage * Config::kTileBytes, keys, tiles);
    if (gathered && tiles.start + kTileN < tiles.stop) copy_row_numbers(tiles.start + kTileN);
  }

  __device__ __forceinline__ void copy_values(const KeyTiles<kTileN>& tiles, int stage) const {
    copy(shared + Config::kValueOffset + stage * Config::kTileBytes, values, tiles);
  }
};

template <typename Config>
__global__ void __launch_bounds__(kThreads, Config::kCtas)
    attention_kernel(const __grid_constant__ AttentionParams p) {
  constexpr int kHeadSize = Config::kHeadSize;
  constexpr int kTileN = Config::kTileN;
  using Element = typename Config::Element;
  extern __shared__ __align__(1024) char smem[];

  const QueryBlock q(p, blockIdx.x);
  const int q_begin = p.cut.begin(q.block);
  KeyTiles<kTileN> tiles;
  const bool gathered = choose_keys<kTileN>(tiles, p, q, smem + Config::kListOffset);
  const KeyValueCopy<Config> copies(p, q, smem, gathered);

  const auto q_rows = row_source<kHeadSize>(
      static_cast<const char*>(p.q) + 2 * (q.batch * p.q_strides.batch + q.head * p.q_strides.head),
      static_cast<int32_t>(2 * p.q_strides.token));
  copy_rows<kHeadSize, kTileM, false>(shared_address(smem) + copy_offset<kHeadSize>(), q_rows,
                                      q_begin, p.cut.end(q.block) - q_begin, nullptr);

  float o[kWarpTiles][kHeadSize / 8][4] = {};
  RowStatistics statistics;
  statistics.reset();
  const float scale_log2 = p.softmax_scale * kLog2E;
  QueryFragments<kHeadSize, Config::kQueryInRegisters> query;
  const uint32_t key_lane =
      shared_address(smem) + Config::kKeyOffset + key_lane_offset<kHeadSize>();
  const uint32_t value_lane =
      shared_address(smem) + Config::kValueOffset + value_lane_offset<kHeadSize>();

  bool more = tiles.first(p.cut);
  if (gathered && more) {
    copies.copy_row_numbers(tiles.start);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
  }
  if (more) copies.copy_keys(tiles, 0);
  if (more && Config::kStages == 2) copies.copy_values(tiles, 0);
  copy_async_commit();
  if constexpr (!Config::kQueryInRegisters) query.load(query_lane<kHeadSize>(shared_address(smem)));
  if constexpr (Config::kQueryInRegisters) {
    copy_async_wait<0>();
    __syncthreads();
    query.load(query_lane<kHeadSize>(shared_address(smem)));
  }

  int stage = 0;
  while (more) {
    Scores<kTileN> s;
    copy_async_wait<0>();
    __syncthreads();  // this tile's keys are here; the last tile's values are used up
    if constexpr (Config::kStages == 1) {
      copies.copy_values(tiles, 0);
      copy_async_commit();
      multiply_keys<Element, kHeadSize, kTileN>(s, query, key_lane);
      if (tiles.valid() < kTileN) mask_keys<kTileN>(s, tiles.valid());
      copy_async_wait<0>();
      __syncthreads();  // this tile's values are here; its keys are used up
      more = tiles.advance(p.cut);
      if (more) copies.copy_keys(tiles, 0);
      copy_async_commit();
      softmax_tile<kTileN, kHeadSize>(s, o, statistics, scale_log2);
      multiply_values<Element, kHeadSize, kTileN>(o, s, value_lane);
    } else {
      const int valid = tiles.valid();
      more = tiles.advance(p.cut);
      if (more) {
        copies.copy_keys(tiles, stage ^ 1);
        copies.copy_values(tiles, stage ^ 1);
      }
      copy_async_commit();
      multiply_keys<Element, kHeadSize, kTileN>(s, query, key_lane + stage * Config::kTileBytes);
      if (valid < kTileN) mask_keys<kTileN>(s, valid);
      softmax_tile<kTileN, kHeadSize>(s, o, statistics, scale_log2);
      multiply_values<Element, kHeadSize, kTileN>(o, s, value_lane + stage * Config::kTileBytes);
      stage ^= 1;
    }
  }
  copy_async_wait<0>();
  __syncthreads();
  write_output<Config>(p, q, o, statistics, smem);
}

template <typename Element, int kHeadSize>
cudaError_t launch_attention_sm80(const AttentionParams& params, cudaStream_t stream) {
  using Config = AttentionConfig<Element, kHeadSize>;
  const auto kernel = attention_kernel<Config>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (error != cudaSuccess) return error;
  const unsigned ctas =
      static_cast<unsigned>(params.batch) * params.heads * params.cut.blocks;
  kernel<<<ctas, kThreads, Config::kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace rainfusion
