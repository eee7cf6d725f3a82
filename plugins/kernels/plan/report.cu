// The plan in the form callers see: density, work and a byte for each block pair.

#include <cuda_runtime.h>

#include "common/key_list.cuh"
#include "common/launch.h"

namespace rainfusion {
namespace {

constexpr int kThreads = 512;

struct ReportParams {
  AttentionParams attention;
  float* density;
  float* work;
  uint8_t* block_mask;
};

// What the rows of a query block attend to.
struct Counts {
  int64_t rows;
  int64_t keys;   // of each, pseudo-keys counted
  int64_t tiles;  // of key blocks' size, in which a kernel takes them
};

// Blocks whole: rows past kv_len count as the others.
__device__ Counts count_block(const AttentionParams& p, int batch, int head, int q) {
  const BlockCut& cut = p.q_cut;
  const KeyList keys(p, batch, head, q, 0, cut.is_sink(q));
  return {cut.end(q) - cut.begin(q), keys.count(p.k_cut), keys.tiles(p.k_cut)};
}

// Pairs and tiles of a head's query blocks, each thread's share.
struct Share {
  unsigned long long pairs = 0;
  unsigned long long tiles = 0;

  __device__ void add(const Counts& counts) {
    pairs += counts.rows * counts.keys;
    tiles += counts.tiles;
  }
};

__device__ Share count_blocks(const AttentionParams& p, int batch, int head) {
  Share share;
  for (int q = threadIdx.x; q < p.q_cut.blocks; q += kThreads) {
    share.add(count_block(p, batch, head, q));
  }
  return share;
}

// The tokens below kv_len of every key window.
using WindowTokens = uint16_t[kMaxKeyBlocks];
static_assert(kMaxWindowTokens <= UINT16_MAX, "a count is a number of 16 bits");

// What the rows of a query window attend to, counted by a warp; lane 0 has the result.
__device__ Counts count_window(const AttentionParams& p, const WindowTokens& tokens,
                               const uint32_t* mask, int limit, int window) {
  const WindowCut& cut = p.k_windows;
  const int leading = min(p.free_begin, limit);
  const int trailing = max(0, limit - p.free_end);
  int64_t tiles = ceil_div(leading, cut.size) + ceil_div(trailing, cut.size);
  int keys = 0;  // this lane's
  for (int first = 0; first < cut.windows(); first += cut.size) {
    bool left = false;  // whether the tile has a pseudo-key
    int chosen = 0;
    const int last = min(first + cut.size, cut.windows());
    for (int k = first + static_cast<int>(threadIdx.x % 32); k < last; k += 32) {
      const int bit = cut.leading_sinks + k;
      const bool kept = mask[bit / 32] >> bit % 32 & 1;
      chosen += kept;
      keys += kept ? tokens[k] : tokens[k] > 0;
      left |= !kept && tokens[k] > 0;
    }
    tiles += __reduce_add_sync(0xffffffffu, chosen) + __any_sync(0xffffffffu, left);
  }
  const int rows = p.q_windows.clipped(p.q_windows.origin(window)).volume();
  return {rows, leading + trailing + __reduce_add_sync(0xffffffffu, keys), tiles};
}

__device__ Share count_windows(const AttentionParams& p, int batch, int head,
                               WindowTokens& tokens) {
  const WindowCut& cut = p.q_windows;
  const int limit = key_count(p.kv_len, batch, cut.tokens);
  for (int k = threadIdx.x; k < p.k_windows.windows(); k += kThreads) {
    tokens[k] = static_cast<uint16_t>(p.k_windows.count_below(k, limit));
  }
  __syncthreads();
  const int64_t first_row = static_cast<int64_t>(p.mask_index[batch * p.heads + head]) * cut.blocks;
  Share share;
  for (int q = threadIdx.x / 32; q < cut.blocks; q += kThreads / 32) {
    const Counts counts =
        cut.is_sink(q)
            ? Counts{cut.run_end(q) - cut.run_begin(q), limit, ceil_div(limit, p.k_windows.size)}
            : count_window(p, tokens, p.masks + (first_row + q) * p.mask_words, limit,
                           q - cut.leading_sinks);
    if (threadIdx.x % 32 == 0) share.add(counts);
  }
  return share;
}

__global__ void __launch_bounds__(kThreads)
    density_kernel(const __grid_constant__ ReportParams params) {
  __shared__ unsigned long long pairs;
  __shared__ unsigned long long tiles;
  __shared__ WindowTokens tokens;
  const AttentionParams& p = params.attention;
  const int batch = blockIdx.x / p.heads;
  const int head = blockIdx.x % p.heads;
  if (threadIdx.x == 0) pairs = tiles = 0;
  __syncthreads();
  const Share share = p.kind[blockIdx.x] == RAINFUSION_KIND_WINDOWS
                          ? count_windows(p, batch, head, tokens)
                          : count_blocks(p, batch, head);
  atomicAdd(&pairs, share.pairs);  // integers: the order does not matter
  atomicAdd(&tiles, share.tiles);
  __syncthreads();
  if (threadIdx.x == 0) {
    const int keys = key_count(p.kv_len, batch, p.q_cut.tokens);
    const double all = keys > 0 ? static_cast<double>(p.q_cut.tokens) * keys : 1.0;
    const double tile = static_cast<double>(p.q_cut.size) * p.k_cut.size;
    if (params.density != nullptr) {
      params.density[blockIdx.x] = static_cast<float>(static_cast<double>(pairs) / all);
    }
    if (params.work != nullptr) {
      params.work[blockIdx.x] = static_cast<float>(static_cast<double>(tiles) * tile / all);
    }
  }
}

// Of the blocks of a method by windows also where its heads are dense.
__global__ void __launch_bounds__(kThreads)
    block_mask_kernel(const __grid_constant__ ReportParams params) {
  const AttentionParams& p = params.attention;
  const int batch_head = blockIdx.y;
  const int q = blockIdx.x;
  const int kind = p.kind[batch_head];
  const bool by_windows = p.q_windows.blocks > 0;
  const int q_blocks = by_windows ? p.q_windows.blocks : p.q_cut.blocks;
  const int k_blocks = by_windows ? p.k_windows.blocks : p.k_cut.blocks;
  const bool whole = kind == RAINFUSION_KIND_DENSE || kind == RAINFUSION_KIND_TEXTURAL ||
                     (by_windows && p.q_windows.is_sink(q));
  const int64_t mask_row = static_cast<int64_t>(p.mask_index[batch_head]) * q_blocks + q;
  const uint32_t* row = p.masks + mask_row * p.mask_words;
  const int64_t out_row = static_cast<int64_t>(batch_head) * q_blocks + q;
  uint8_t* out = params.block_mask + out_row * k_blocks;
  for (int k = threadIdx.x; k < k_blocks; k += kThreads) {
    out[k] = whole ? 1 : row[k / 32] >> k % 32 & 1;
  }
}

}  // namespace

cudaError_t launch_report(const AttentionParams& attention, const RainfusionPlan& plan,
                          cudaStream_t stream) {
  const ReportParams params{attention, plan.density, plan.work, plan.block_mask};
  const unsigned batch_heads = static_cast<unsigned>(attention.batch) * attention.heads;
  if (plan.density != nullptr || plan.work != nullptr) {
    density_kernel<<<batch_heads, kThreads, 0, stream>>>(params);
  }
  if (plan.block_mask != nullptr) {
    const bool by_windows = attention.q_windows.blocks > 0;
    const dim3 grid(by_windows ? attention.q_windows.blocks : attention.q_cut.blocks, batch_heads);
    block_mask_kernel<<<grid, kThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

}  // namespace rainfusion
