// 8 bits: what is taken off keys and values before they are rounded, and the scales of values.
//
// Softmax does not change when every key loses the same vector, nor does the output when every
// value does and the output gets it back: so both lose what they have in common. The mean of some
// keys is enough for that, but the range of values must be that of all of them.

#include <cuda_runtime.h>

#include "common/element.h"
#include "common/variants.h"
#include "plan/eight_bit.h"

namespace rainfusion {
namespace {

using namespace eight_bit;

constexpr int kThreads = 256;
constexpr int kFlight = 4;  // rows that a thread reads at once

template <typename Element, int kHeadSize>
struct StatisticsShape {
  static constexpr int kPerChunk = ElementTraits<Element>::kPerChunk;
  static constexpr int kChunks = kHeadSize / kPerChunk;
  static constexpr int kGroups = kThreads / kChunks;  // rows side by side
};

// Calls function(values of a thread's chunk) for rows first, first + step, ... below `stop`.
template <typename Element, typename Function>
__device__ __forceinline__ void for_rows(const Element* rows, int64_t stride, int first, int step,
                                         int stop, const Function& function) {
  using Traits = ElementTraits<Element>;
  for (int row = first; row < stop; row += kFlight * step) {
    uint4 packed[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int at = row + i * step;
      if (at < stop) packed[i] = __ldg(reinterpret_cast<const uint4*>(rows + at * stride));
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      if (row + i * step >= stop) break;
      const Element* elements = reinterpret_cast<const Element*>(&packed[i]);
      float x[Traits::kPerChunk];
#pragma unroll
      for (int j = 0; j < Traits::kPerChunk; ++j) x[j] = Traits::to_float(elements[j]);
      function(x);
    }
  }
}

// Column threadIdx.x of what all groups have, combined in their order; every thread comes here.
template <typename Element, int kHeadSize, typename Combine>
__device__ __forceinline__ void write_column(
    const float (&own)[StatisticsShape<Element, kHeadSize>::kPerChunk], const Combine& combine,
    float* out) {
  using Shape = StatisticsShape<Element, kHeadSize>;
  __shared__ float columns[Shape::kGroups][kHeadSize];
  __syncthreads();  // the last ones are read
#pragma unroll
  for (int j = 0; j < Shape::kPerChunk; ++j) {
    columns[threadIdx.x / Shape::kChunks][threadIdx.x % Shape::kChunks * Shape::kPerChunk + j] =
        own[j];
  }
  __syncthreads();
  if (threadIdx.x >= kHeadSize) return;
  float result = columns[0][threadIdx.x];
  for (int i = 1; i < Shape::kGroups; ++i) result = combine(result, columns[i][threadIdx.x]);
  out[threadIdx.x] = result;
}

template <typename Element, int kHeadSize>
__global__ void __launch_bounds__(kThreads)
    partial_statistics_kernel(const __grid_constant__ EightBitSources p) {
  using Shape = StatisticsShape<Element, kHeadSize>;
  const Geometry& g = p.geometry;
  const int batch = blockIdx.y / g.heads;
  const int head = blockIdx.y % g.heads;
  const int limit = key_count(p.kv_len, batch, static_cast<int32_t>(g.layout.tokens));
  const int begin = blockIdx.x * kStatisticsTokens;
  const int stop = min(begin + kStatisticsTokens, limit);
  const int group = threadIdx.x / Shape::kChunks;
  const auto rows_of = [&](EightBitTensor which) {
    const RainfusionStrides& strides = p.strides[which];
    return static_cast<const Element*>(p.tensor[which]) + batch * strides.batch +
           head * strides.head + threadIdx.x % Shape::kChunks * Shape::kPerChunk;
  };

  float key_sum[Shape::kPerChunk] = {};
  static_assert(kStatisticsTokens % kCentreStride == 0, "chunks begin with a key that counts");
  for_rows(rows_of(kK), p.strides[kK].token, begin + group * kCentreStride,
           Shape::kGroups * kCentreStride, stop, [&](const float (&x)[Shape::kPerChunk]) {
#pragma unroll
             for (int j = 0; j < Shape::kPerChunk; ++j) key_sum[j] += x[j];
           });
  float sum[Shape::kPerChunk] = {};
  float least[Shape::kPerChunk];
  float most[Shape::kPerChunk];
#pragma unroll
  for (int j = 0; j < Shape::kPerChunk; ++j) {
    least[j] = INFINITY;
    most[j] = -INFINITY;
  }
  for_rows(rows_of(kV), p.strides[kV].token, begin + group, Shape::kGroups, stop,
           [&](const float (&x)[Shape::kPerChunk]) {
#pragma unroll
             for (int j = 0; j < Shape::kPerChunk; ++j) {
               sum[j] += x[j];
               least[j] = fminf(least[j], x[j]);
               most[j] = fmaxf(most[j], x[j]);
             }
           });

  const int64_t chunk = static_cast<int64_t>(blockIdx.y) * g.statistics_chunks() + blockIdx.x;
  float* out = p.tiles.partials + chunk * kPartials * kHeadSize;
  const auto add = [](float a, float b) { return a + b; };
  write_column<Element, kHeadSize>(key_sum, add, out + kKeySum * kHeadSize);
  write_column<Element, kHeadSize>(sum, add, out + kValueSum * kHeadSize);
  write_column<Element, kHeadSize>(
      least, [](float a, float b) { return fminf(a, b); }, out + kValueMin * kHeadSize);
  write_column<Element, kHeadSize>(
      most, [](float a, float b) { return fmaxf(a, b); }, out + kValueMax * kHeadSize);
}

// A CTA finishes a head, a thread a channel.
__global__ void __launch_bounds__(128)
    statistics_kernel(const __grid_constant__ EightBitSources p) {
  const Geometry& g = p.geometry;
  const int head_size = g.head_size;
  const int chunks = g.statistics_chunks();
  const int limit =
      key_count(p.kv_len, blockIdx.x / g.heads, static_cast<int32_t>(g.layout.tokens));
  const float* partials = p.tiles.partials +
                          static_cast<int64_t>(blockIdx.x) * chunks * kPartials * head_size +
                          threadIdx.x;
  float key_sum = 0.f;
  float sum = 0.f;
  float least = INFINITY;
  float most = -INFINITY;
#pragma unroll 4
  for (int i = 0; i < chunks; ++i, partials += kPartials * head_size) {
    key_sum += partials[kKeySum * head_size];
    sum += partials[kValueSum * head_size];
    least = fminf(least, partials[kValueMin * head_size]);
    most = fmaxf(most, partials[kValueMax * head_size]);
  }
  float* centres =
      p.tiles.centres + static_cast<int64_t>(blockIdx.x) * kCentres * head_size + threadIdx.x;
  const float mean = limit > 0 ? sum / static_cast<float>(limit) : 0.f;
  const float amplitude = limit > 0 ? fmaxf(most - mean, mean - least) : 0.f;
  const int keys = static_cast<int>(ceil_div(limit, kCentreStride));
  centres[kKeyCentre * head_size] = keys > 0 ? key_sum / static_cast<float>(keys) : 0.f;
  centres[kValueCentre * head_size] = mean;
  centres[kValueScale * head_size] = fmaxf(amplitude, kSmallestAmplitude) / kLargestE4m3;
}

}  // namespace

cudaError_t launch_eight_bit_statistics(const EightBitSources& sources, cudaStream_t stream) {
  const Geometry& g = sources.geometry;
  const cudaError_t error = with_eight_bit_variant(g, [&](auto element, auto head_size) {
    using Element = typename decltype(element)::Type;
    const dim3 grid(g.statistics_chunks(), g.batch_heads());
    partial_statistics_kernel<Element, head_size()><<<grid, kThreads, 0, stream>>>(sources);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  statistics_kernel<<<g.batch_heads(), g.head_size, 0, stream>>>(sources);
  return cudaGetLastError();
}

}  // namespace rainfusion
