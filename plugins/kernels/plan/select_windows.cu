// piecewise: each query window's best key windows, exactly, as a block mask.
//
// A CTA takes up to sixteen query windows of one head. A thread computes a tile of their scores in
// registers, rows by two key windows, so that a mean that it reads serves several products; then a
// warp at a time finds the score of the last kept window of a row bit by bit.

#include <cuda_runtime.h>

#include "common/launch.h"
#include "common/variants.h"
#include "plan/top_blocks.cuh"

namespace rainfusion {
namespace {

constexpr int kSelectThreads = 256;
constexpr int kColumns = 2;              // key windows of a thread's tile
constexpr int kSharedBytes = 99 * 1024;  // that every GPU has for a CTA

static_assert(2 * (kMaxKeyBlocks + kHeadSizes[kHeadSizeCount - 1]) * sizeof(float) <= kSharedBytes,
              "two rows fit whatever the problem");

struct SelectParams {
  const float* q_means;
  const float* k_means;
  uint32_t* masks;
  const float* sparsity;
  const int32_t* kv_len;
  Geometry geometry;
};

// ordered(score) of all key windows against the CTA's query windows, 0 for those that have no token
// below `keys`. k_means is [head_size, windows], so that threads read side by side.
template <int kRows>
__device__ void score_windows(const Geometry& g, const float* q_means, const float* k_means,
                              uint32_t* scores, int keys) {
  const int head_size = g.head_size;
  const int windows = g.k_windows.windows();
  for (int first = threadIdx.x; first < windows; first += kColumns * kSelectThreads) {
    int column[kColumns];  // past the end the last window once more
#pragma unroll
    for (int c = 0; c < kColumns; ++c) column[c] = min(first + c * kSelectThreads, windows - 1);
    float dot[kRows][kColumns] = {};
#pragma unroll 2
    for (int d = 0; d < head_size; d += 4) {
      float y[kColumns][4];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) y[c][i] = __ldg(k_means + (d + i) * windows + column[c]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(q_means + r * head_size + d);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          dot[r][c] = fmaf(x.x, y[c][0],
                           fmaf(x.y, y[c][1], fmaf(x.z, y[c][2], fmaf(x.w, y[c][3], dot[r][c]))));
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int window = first + c * kSelectThreads;
      if (window >= windows) break;
      const bool candidate = g.k_windows.first_token(window) < keys;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint32_t score = max(ordered(dot[r][c] * g.softmax_scale), 1u);
        scores[r * windows + window] = candidate ? score : 0;
      }
    }
  }
}

__device__ void select_row(const Geometry& g, float sparsity, const uint32_t* scores, int keys,
                           int q_window, uint32_t* row) {
  const WindowCut& cut = g.k_windows;
  const int windows = cut.windows();
  int candidates = 0;
  for (int k = threadIdx.x % 32; k < windows; k += 32) candidates += scores[k] != 0;
  candidates = __reduce_add_sync(0xffffffffu, candidates);
  const int keep =
      static_cast<int>(min64(candidates, kept_blocks(clamp_sparsity(sparsity), windows)));
  const auto scored = [&](int block) {
    return block >= cut.leading_sinks && block < cut.leading_sinks + windows;
  };
  const bool all = is_exact(g.layout, g.q_windows, q_window);
  const auto always = [&](int block) {
    if (!scored(block)) return block < cut.blocks;  // sinks
    const int window = block - cut.leading_sinks;
    return cut.first_token(window) < keys &&
           (all || windows_meet(g.q_windows, cut, q_window, window) ||
            is_exact(g.layout, cut, window));
  };
  write_mask_row(scores, windows, keep, cut.leading_sinks, scored, always, g.mask_words, row);
}

template <int kRows>
__global__ void __launch_bounds__(kSelectThreads)
    select_windows_kernel(const __grid_constant__ SelectParams p) {
  extern __shared__ float4 shared[];
  const Geometry& g = p.geometry;
  if (is_dense(g, p.sparsity)) return;
  const int q_windows = g.q_windows.windows();
  const int k_windows = g.k_windows.windows();
  const int first = blockIdx.x * kRows;
  const int64_t batch_head = blockIdx.y;
  const int keys = key_count(p.kv_len, blockIdx.y / g.heads, g.k_windows.tokens);

  float* q_means = reinterpret_cast<float*>(shared);
  uint32_t* scores = reinterpret_cast<uint32_t*>(q_means + kRows * g.head_size);
  const float* source = p.q_means + (batch_head * q_windows + first) * g.head_size;
  const int real = min(kRows, q_windows - first) * g.head_size;
  for (int i = threadIdx.x; i < kRows * g.head_size; i += kSelectThreads) {
    q_means[i] = i < real ? source[i] : 0.f;
  }
  __syncthreads();
  score_windows<kRows>(g, q_means, p.k_means + batch_head * k_windows * g.head_size, scores, keys);
  __syncthreads();

  for (int row = threadIdx.x / 32; row < kRows; row += kSelectThreads / 32) {
    const int q_window = first + row;
    if (q_window >= q_windows) return;
    const int64_t mask_row = batch_head * g.q_windows.blocks + g.q_windows.leading_sinks + q_window;
    select_row(g, *p.sparsity, scores + row * k_windows, keys, q_window,
               p.masks + mask_row * g.mask_words);
  }
}

// Of a CTA: query windows' means and scores.
int shared_bytes(const Geometry& g, int rows) {
  return rows * (g.head_size + g.k_windows.windows()) * static_cast<int>(sizeof(float));
}

// With as many rows as shared memory allows.
template <int kRows>
cudaError_t launch_rows(const SelectParams& params, cudaStream_t stream) {
  const Geometry& g = params.geometry;
  const int bytes = shared_bytes(g, kRows);
  if constexpr (kRows > 2) {
    if (bytes > kSharedBytes) return launch_rows<kRows / 2>(params, stream);
  }
  const auto kernel = select_windows_kernel<kRows>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(ceil_div(g.q_windows.windows(), kRows)), g.batch_heads());
  kernel<<<grid, kSelectThreads, bytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_select_windows(const Geometry& geometry, const RainfusionTensors& tensors,
                                  const Workspace& workspace, cudaStream_t stream) {
  const SelectParams params{workspace.q_means, workspace.k_means, workspace.masks,
                            tensors.sparsity,  tensors.kv_len,    geometry};
  return launch_rows<16>(params, stream);
}

}  // namespace rainfusion
