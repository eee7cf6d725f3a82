// Attention of all heads, whatever their kinds, in one launch (sm_80 and newer).
//
// FlashAttention-2's structure: a CTA of four warps holds 128 query rows; keys and values come in
// tiles through cp.async; scores, probabilities and output stay in registers. Query blocks have
// more rows than that: where a CTA holds rows of two, it walks over the keys of both, and a warp
// skips what its own block does not attend to.
#pragma once

#include <cuda_runtime.h>

#include "sm80/launch.h"
#include "sm80/write_output.cuh"

namespace rainfusion::sm80 {

// kStages = 2 copies a whole tile ahead; kStages = 1 copies values after the first product and the
// next keys after the second, in half the shared memory.
template <typename Element_, int kHeadSize_, int kStages_>
struct AttentionConfig {
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
  static constexpr int kMaskOffset = kValueOffset + kStages * kTileBytes;
  static constexpr int kSharedBytes = kMaskOffset + sizeof(StagedMask);
  // Of the 100 KB of compute capabilities 8.6, 8.9 and 12.x, each CTA costs one more.
  static_assert(kStages == 2 || kHeadSize == 128 || kCtas * (kSharedBytes + 1024) <= 100 * 1024,
                "two CTAs fit everywhere");
  static_assert(runs(kHeadSize, block_shape(kHeadSize)), "the default is for every kernel");
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

// One stage. On entry the first tile's keys, if there are any, are on their way. (An early return
// where there are none would make nvcc 13.0 copy the accumulators once a tile.)
template <typename Config>
__device__ __forceinline__ void attend_single(Accumulators<Config>& acc, const FragmentLanes& lanes,
                                              const KeyValueCopy<Config>& copies,
                                              KeyTiles<Config::kTileN>& tiles, const BlockCut& cut,
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
      if (tiles.valid() < kTileN) mask_keys<kTileN>(s, tiles.valid());
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
template <typename Config>
__device__ __forceinline__ void attend_double(Accumulators<Config>& acc, const FragmentLanes& lanes,
                                              const KeyValueCopy<Config>& copies,
                                              KeyTiles<Config::kTileN>& tiles, const BlockCut& cut,
                                              float scale_log2, bool more) {
  using Element = typename Config::Element;
  constexpr int kHeadSize = Config::kHeadSize;
  constexpr int kTileN = Config::kTileN;
  int stage = 0;
  for (; more; stage ^= 1) {
    Scores<kTileN> s;
    const int valid = tiles.valid();
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
    if (valid < kTileN) mask_keys<kTileN>(s, valid);
    softmax_tile<kTileN, kHeadSize>(s, acc.o, acc.statistics, scale_log2);
    multiply_values<Element, kHeadSize, kTileN>(acc.o, s, lanes.value + offset);
  }
}

template <typename Config>
__device__ __forceinline__ void attend(const AttentionParams& p, const QuerySpan& q,
                                       Accumulators<Config>& acc, char* smem) {
  using Shape = typename Config::Shape;
  const KeyList keys(p, q.batch, q.head, q.block, q.begin, q.sink);
  KeyTiles<Config::kTileN> tiles(p, q, keys,
                                 *reinterpret_cast<StagedMask*>(smem + Config::kMaskOffset));
  const KeyValueCopy<Config> copies(p, q, smem);
  const bool more = tiles.first(p.k_cut);

  const auto queries = head_rows<typename Config::Element, Config::kHeadSize>(p.q, p.q_strides, q);
  copy_rows<Shape, kTileM>(copies.shared, queries, q.begin, q.rows);
  if (more) copies.copy_keys(tiles, 0);
  if (more && Config::kStages == 2) copies.copy_values(tiles, 0);
  copy_async_commit();

  const uint32_t shared = shared_address(smem);
  const FragmentLanes lanes{
      shared + query_lane_offset<Shape>(),
      shared + Config::kKeyOffset + key_lane_offset<Shape>(),
      shared + Config::kValueOffset + value_lane_offset<Shape>(),
  };
  const float scale_log2 = p.softmax_scale * kLog2E;
  if constexpr (Config::kStages == 1) {
    attend_single<Config>(acc, lanes, copies, tiles, p.k_cut, scale_log2, more);
  } else {
    attend_double<Config>(acc, lanes, copies, tiles, p.k_cut, scale_log2, more);
  }
}

template <typename Config>
__global__ void __launch_bounds__(kThreads, Config::kCtas)
    attention_kernel(const __grid_constant__ AttentionParams p) {
  extern __shared__ __align__(1024) char smem[];
  const QuerySpan q(p, blockIdx.x);
  Accumulators<Config> acc;
  acc.statistics.reset();
  attend<Config>(p, q, acc, smem);
  copy_async_wait<0>();
  __syncthreads();  // without keys the query tile is still on its way
  write_output<typename Config::Element, Config::kHeadSize>(p, q, acc.o, acc.statistics, smem);
}

template <typename Config>
cudaError_t launch_config(const AttentionParams& params, cudaStream_t stream) {
  const auto kernel = attention_kernel<Config>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (error != cudaSuccess) return error;
  const unsigned ctas = static_cast<unsigned>(params.batch) * params.heads *
                        static_cast<unsigned>(QuerySpan::count(params.q_cut));
  kernel<<<ctas, kThreads, Config::kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename Element, int kHeadSize>
cudaError_t launch_attention(const AttentionParams& params, int capability, cudaStream_t stream) {
  if constexpr (kHeadSize == 96) {
    // Two stages are faster where two CTAs of them still fit on a multiprocessor: not where it has
    // 100 KB of shared memory.
    const bool small = (capability >= 86 && capability <= 89) || capability >= 120;
    if (!small) return launch_config<AttentionConfig<Element, kHeadSize, 2>>(params, stream);
  }
  return launch_config<AttentionConfig<Element, kHeadSize, 1>>(params, stream);
}

}  // namespace rainfusion::sm80
