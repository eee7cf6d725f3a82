// piecewise: means of the tokens of each query and key window, in float32, and of the values of
// each key window; keys and values rounded are the pseudo-keys.
//
// A CTA takes a window. Its threads read rows side by side, several of each at once, because a
// window is small against what must be on its way to keep the memory busy.

#include <cuda_runtime.h>

#include "common/launch.h"
#include "common/ptx.cuh"
#include "common/variants.h"

namespace rainfusion {
namespace {

constexpr int kMeansThreads = 256;  // at most
constexpr int kFlight = 6;          // rows that a thread reads at once

struct WindowMeansParams {
  const void* tensor[3];  // q, k, v
  RainfusionStrides strides[3];
  Workspace workspace;
  const float* sparsity;
  const int32_t* kv_len;
  Geometry geometry;
};

template <typename Element, int kHeadSize>
struct MeansShape {
  static constexpr int kChunks = kHeadSize / ElementTraits<Element>::kPerChunk;
  static constexpr int kGroups = kMeansThreads / kChunks / 8 * 8;  // rows side by side
  static constexpr int kThreads = kGroups * kChunks;
  static_assert(kThreads >= kHeadSize && kThreads % 32 == 0, "a thread finishes a column");
};

// Sums of a thread's chunk over its rows among `tokens`, which are a window's in shared memory.
//
// Rows come through shared memory, where a thread reads what it copied itself: loads to registers
// would be on their way two at a time, however many the source asks for (nvcc 13.0, sm_90).
template <typename Element, int kHeadSize>
__device__ __forceinline__ void add_rows(float (&sum)[ElementTraits<Element>::kPerChunk],
                                         const Element* rows, int64_t stride, const int32_t* tokens,
                                         int count) {
  using Traits = ElementTraits<Element>;
  using Shape = MeansShape<Element, kHeadSize>;
  __shared__ uint4 flight[kFlight][Shape::kThreads];
  // All threads go round as often: they meet at the end.
  for (int first = 0; first < count; first += kFlight * Shape::kGroups) {
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int row = first + threadIdx.x / Shape::kChunks + i * Shape::kGroups;
      copy_async_16(shared_address(&flight[i][threadIdx.x]),
                    rows + tokens[min(row, count - 1)] * stride, row < count);
    }
    copy_async_commit();
    copy_async_wait<0>();
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const uint4 packed = flight[i][threadIdx.x];
      const Element* elements = reinterpret_cast<const Element*>(&packed);
#pragma unroll
      for (int j = 0; j < Traits::kPerChunk; ++j) sum[j] += Traits::to_float(elements[j]);
    }
    __syncwarp();  // for the compiler: what was read stays before the next copies
  }
}

// Column threadIdx.x of the sums of all threads; every thread must come here.
template <typename Element, int kHeadSize>
__device__ __forceinline__ float total_of(const float (&sum)[ElementTraits<Element>::kPerChunk]) {
  constexpr int kPerChunk = ElementTraits<Element>::kPerChunk;
  using Shape = MeansShape<Element, kHeadSize>;
  __shared__ float4 sums[Shape::kGroups][kHeadSize / 4];
  float4* place = &sums[threadIdx.x / Shape::kChunks][threadIdx.x % Shape::kChunks * kPerChunk / 4];
#pragma unroll
  for (int i = 0; i < kPerChunk; i += 4) {
    place[i / 4] = make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]);
  }
  __syncthreads();
  float total = 0.f;
  if (threadIdx.x < kHeadSize) {
#pragma unroll
    for (int i = 0; i < Shape::kGroups; ++i) {
      total += reinterpret_cast<const float*>(sums[i])[threadIdx.x];
    }
  }
  return total;
}

// A CTA's tensor (0 = q, 1 = k, 2 = v) and window: x counts query windows, then key windows once
// or twice.
template <typename Element, int kHeadSize>
__global__ void __launch_bounds__(MeansShape<Element, kHeadSize>::kThreads)
    window_means_kernel(const __grid_constant__ WindowMeansParams p) {
  using Traits = ElementTraits<Element>;
  using Shape = MeansShape<Element, kHeadSize>;
  __shared__ int32_t tokens[Shape::kThreads];
  const Geometry& g = p.geometry;
  if (is_dense(g, p.sparsity)) return;
  const int q_windows = g.q_windows.windows();
  const int k_windows = g.k_windows.windows();
  const int past_q = static_cast<int>(blockIdx.x) - q_windows;
  const int which = past_q < 0 ? 0 : past_q < k_windows ? 1 : 2;
  const int window = which == 0 ? blockIdx.x : which == 1 ? past_q : past_q - k_windows;
  const WindowCut& cut = which == 0 ? g.q_windows : g.k_windows;
  const int batch = blockIdx.y / g.heads;
  const int head = blockIdx.y % g.heads;
  const Extents at = cut.origin(window);
  const Extents size = cut.clipped(at);
  const int count = cut.count_before(at, key_count(p.kv_len, batch, cut.tokens));

  const RainfusionStrides& strides = p.strides[which];
  const Element* rows = static_cast<const Element*>(p.tensor[which]) + batch * strides.batch +
                        head * strides.head + threadIdx.x % Shape::kChunks * Traits::kPerChunk;
  float sum[Traits::kPerChunk] = {};
  for (int first = 0; first < count; first += Shape::kThreads) {
    if (first > 0) __syncthreads();  // the last rows are read
    const int row = first + threadIdx.x;
    if (row < count) {
      const int line = row / size.w;
      tokens[threadIdx.x] =
          cut.token(at.t + line / size.h, at.h + line % size.h, at.w + row % size.w);
    }
    __syncthreads();
    add_rows<Element, kHeadSize>(sum, rows, strides.token, tokens,
                                 min(count - first, Shape::kThreads));
  }
  const float total = total_of<Element, kHeadSize>(sum);
  const Workspace& w = p.workspace;
  if (which == 1 && head == 0 && threadIdx.x == 0) {
    w.pseudo_bias[static_cast<int64_t>(batch) * k_windows + window] =
        count > 0 ? logf(static_cast<float>(count)) / g.softmax_scale : -INFINITY;
  }
  if (threadIdx.x >= kHeadSize) return;
  const float mean = count > 0 ? total / static_cast<float>(count) : 0.f;
  const int64_t of_head = static_cast<int64_t>(blockIdx.y) * cut.windows() * kHeadSize;
  const int64_t place = of_head + static_cast<int64_t>(window) * kHeadSize + threadIdx.x;
  if (which == 0) {
    w.q_means[place] = mean;
  } else {
    if (which == 1) {
      w.k_means[of_head + static_cast<int64_t>(threadIdx.x) * k_windows + window] = mean;
    }
    void* gathered = which == 1 ? w.gathered_k : w.gathered_v;
    static_cast<Element*>(gathered)[place] = Traits::from_float(mean);
  }
}

}  // namespace

cudaError_t launch_window_means(const Geometry& geometry, const RainfusionTensors& tensors,
                                const Workspace& workspace, cudaStream_t stream) {
  const WindowMeansParams params{{tensors.q, tensors.k, tensors.v},
                                 {tensors.q_strides, tensors.k_strides, tensors.v_strides},
                                 workspace,
                                 tensors.sparsity,
                                 tensors.kv_len,
                                 geometry};
  const Geometry& g = geometry;
  const int read_k_and_v = tensors.v != nullptr ? 2 : 1;  // a plan alone needs no values
  const dim3 grid(g.q_windows.windows() + read_k_and_v * g.k_windows.windows(), g.batch_heads());
  return with_variant(g.dtype, g.head_size, [&](auto element, auto head_size) {
    using Element = typename decltype(element)::Type;
    constexpr int kThreads = MeansShape<Element, head_size()>::kThreads;
    window_means_kernel<Element, head_size()><<<grid, kThreads, 0, stream>>>(params);
    return cudaGetLastError();
  });
}

}  // namespace rainfusion
