// 8 bits: queries, keys and values rounded into tiles (common/eight_bit.h).
//
// Four threads take a row. They rotate it, so that no channel is much larger than the others, find
// its largest number and round it: a query by a factor of its own, a key by one of its tile.

#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "common/launch.h"
#include "common/ptx.cuh"
#include "common/variants.h"
#include "plan/eight_bit.h"

namespace rainfusion {
namespace {

using namespace eight_bit;

constexpr int kRowThreads = 4;
constexpr int kQueryRows = 64;        // of a CTA
constexpr int kCentreThreads = 1024;  // several rows of sums at once
static_assert(kQueries % kQueryRows == 0, "CTAs share a tile");

// Which tokens the rows of a block are, in their order. Those of a window are counted in the raster
// of what of its box is in the grid, so that rows without a token come last.
struct BlockTokens {
  int count;
  int begin;  // of a run; the first token of a window
  Extents size;
  int32_t grid_h;
  int32_t grid_w;
  bool window;
  int below;  // how many of them are below a limit: the first ones

  __device__ BlockTokens(const BlockCut& cut, int block, int limit)
      : count(cut.end(block) - cut.begin(block)), begin(cut.begin(block)), window(false) {
    below = max(0, min(count, limit - begin));
  }
  __device__ BlockTokens(const WindowCut& cut, int block, int limit)
      : grid_h(cut.grid.h), grid_w(cut.grid.w), window(!cut.is_sink(block)) {
    if (window) {
      const Extents at = cut.origin(block - cut.leading_sinks);
      size = cut.clipped(at);
      begin = cut.token(at.t, at.h, at.w);
      count = size.volume();
      below = cut.count_before(at, limit);
    } else {
      begin = cut.run_begin(block);
      count = cut.run_end(block) - begin;
      below = max(0, min(count, limit - begin));
    }
  }

  __device__ int64_t token(int row) const {
    if (!window) return begin + row;
    const int line = row / size.w;
    return begin + (line / size.h * grid_h + line % size.h) * grid_w + row % size.w;
  }
};

// Two numbers of e4m3, the first in the lower byte.
__device__ __forceinline__ float2 floats_of_e4m3(__nv_fp8x2_storage_t pair) {
  return __half22float2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3));
}

// What rounding to e4m3 takes from two numbers.
__device__ __forceinline__ float2 error_of_e4m3(float a, float b) {
  const float2 rounded =
      floats_of_e4m3(__nv_cvt_float2_to_fp8x2(float2{a, b}, __NV_SATFINITE, __NV_E4M3));
  return {a - rounded.x, b - rounded.y};
}

// A thread's share of a row: chunks of eight elements, every fourth one.
template <int kHeadSize>
struct RowPart {
  static constexpr int kChunks = kHeadSize / 8 / kRowThreads;
  float x[kChunks][8];

  static __device__ __forceinline__ int lane() { return threadIdx.x % kRowThreads; }
  static __device__ __forceinline__ int chunk(int j) { return lane() + kRowThreads * j; }

  template <typename Element>
  __device__ __forceinline__ void load(const Element* row, bool real) {
    uint4 packed[kChunks];
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      packed[j] = real ? __ldg(reinterpret_cast<const uint4*>(row) + chunk(j)) : uint4{};
    }
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const Element* elements = reinterpret_cast<const Element*>(&packed[j]);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[j][i] = ElementTraits<Element>::to_float(elements[i]);
    }
  }

  template <typename Function>
  __device__ __forceinline__ void for_each(const Function& function) {
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
#pragma unroll
      for (int i = 0; i < 8; ++i) function(x[j][i], chunk(j) * 8 + i);
    }
  }

  // The product with the Hadamard matrix of ones: butterflies over every bit of the index.
  __device__ __forceinline__ void rotate() {
#pragma unroll
    for (int bit = 1; bit < 8; bit *= 2) {
#pragma unroll
      for (int j = 0; j < kChunks; ++j) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if ((i & bit) == 0) butterfly(x[j][i], x[j][i | bit]);
        }
      }
    }
#pragma unroll
    for (int bit = 1; bit < kChunks; bit *= 2) {
#pragma unroll
      for (int j = 0; j < kChunks; ++j) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if ((j & bit) == 0) butterfly(x[j][i], x[j | bit][i]);
        }
      }
    }
#pragma unroll
    for (int bit = 1; bit < kRowThreads; bit *= 2) {
      const bool upper = (lane() & bit) != 0;
      for_each([&](float& value, int) {
        const float other = __shfl_xor_sync(0xffffffffu, value, bit);
        value = upper ? other - value : value + other;
      });
    }
  }

  // Real rows get some of what rounding to e4m3 took from the row before, one after the other, so
  // that the errors of neighbours add up to less.
  __device__ __forceinline__ void pass_errors_on(bool real) {
    const int turn = threadIdx.x / kRowThreads % kErrorRows;
#pragma unroll
    for (int rounded = 0; rounded + 1 < kErrorRows; ++rounded) {
      const float share = real && turn == rounded + 1 ? kErrorShare : 0.f;
#pragma unroll
      for (int j = 0; j < kChunks; ++j) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          const float2 error = error_of_e4m3(x[j][i], x[j][i + 1]);
          const float first = __shfl_up_sync(0xffffffffu, error.x, kRowThreads);
          const float second = __shfl_up_sync(0xffffffffu, error.y, kRowThreads);
          x[j][i] = fmaf(share, first, x[j][i]);
          x[j][i + 1] = fmaf(share, second, x[j][i + 1]);
        }
      }
    }
  }

  // The largest magnitude of the thread, by its bits, whose order puts NaN above all numbers.
  __device__ __forceinline__ uint32_t largest_bits() {
    uint32_t bits = 0;
    for_each([&](float& value, int) { bits = max(bits, __float_as_uint(fabsf(value))); });
    return bits;
  }

  // Integers of `inverse` times the row, to a row of a tile.
  __device__ __forceinline__ void write_integers(uint8_t* tile, int row, float inverse) const {
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      uint32_t words[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int rounded = __float2int_rn(x[j][i] * inverse);
        words[i / 4] |= static_cast<uint32_t>(rounded & 0xff) << i % 4 * 8;
      }
      const int place = row_offset(kHeadSize, row, chunk(j) / 2) + chunk(j) % 2 * 8;
      *reinterpret_cast<uint2*>(tile + place) = uint2{words[0], words[1]};
    }
  }

 private:
  static __device__ __forceinline__ void butterfly(float& a, float& b) {
    const float sum = a + b;
    b = a - b;
    a = sum;
  }
};

__device__ __forceinline__ uint32_t quad_max_bits(uint32_t bits) {
  bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, 1));
  return max(bits, __shfl_xor_sync(0xffffffffu, bits, 2));
}

// Not fmaxf, which would make a number of NaN.
__device__ __forceinline__ float at_least_smallest(float amplitude) {
  return amplitude < kSmallestAmplitude ? kSmallestAmplitude : amplitude;
}

__device__ __forceinline__ bool uses_windows(const Geometry& g, const float* sparsity) {
  return g.method.by_windows() && !is_dense(g, sparsity);
}

// A CTA takes some rows of a query tile.
template <typename Element, int kHeadSize>
__global__ void __launch_bounds__(kQueryRows* kRowThreads)
    query_tiles_kernel(const __grid_constant__ EightBitSources p, int q_tiles) {
  const Geometry& g = p.geometry;
  const bool by_windows = uses_windows(g, p.sparsity);
  const int block = blockIdx.x / (kQueries / kQueryRows);
  const int row = blockIdx.x % (kQueries / kQueryRows) * kQueryRows + threadIdx.x / kRowThreads;
  if (block >= (by_windows ? g.q_windows.blocks : g.q_cut.blocks)) return;
  const BlockTokens tokens =
      by_windows ? BlockTokens(g.q_windows, block, 0) : BlockTokens(g.q_cut, block, 0);
  const bool real = row < tokens.count;
  const int64_t token = real ? tokens.token(row) : 0;
  const RainfusionStrides& strides = p.strides[kQ];
  const int64_t batch_head = blockIdx.y;

  RowPart<kHeadSize> part;
  part.load(static_cast<const Element*>(p.tensor[kQ]) + blockIdx.y / g.heads * strides.batch +
                blockIdx.y % g.heads * strides.head + token * strides.token,
            real);
  const float* centre = p.tiles.centres + (batch_head * kCentres + kKeyCentre) * kHeadSize;
  float shift = 0.f;
  part.for_each([&](float& value, int channel) { shift += value * __ldg(centre + channel); });
  shift = quad_sum(shift);
  part.rotate();
  const float amplitude = at_least_smallest(__uint_as_float(quad_max_bits(part.largest_bits())));
  const int64_t tile = batch_head * q_tiles + block;
  part.write_integers(p.tiles.q + tile * (kQueries * kHeadSize), row, kLargestInteger / amplitude);
  if (part.lane() != 0) return;
  p.tiles.q_factor[tile * kQueries + row] =
      amplitude / kLargestInteger * (g.softmax_scale * kLog2E / kHeadSize);
  if (real) p.tiles.lse_shift[batch_head * g.layout.tokens + token] = shift * g.softmax_scale;
}

// Where a byte of a tile of values lies in shared memory: 16 bytes are left free behind 256, so
// that the four threads of a row, whose channels are 8 rows of 32 bytes apart, write to other
// banks.
__device__ __forceinline__ int spread(int offset) { return offset + (offset >> 8 << 4); }

__device__ __forceinline__ float sum_of_e4m3(const uint4& chunk) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
  float2 sum = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float2 values =
        floats_of_e4m3(static_cast<__nv_fp8x2_storage_t>(words[i / 2] >> i % 2 * 16));
    sum.x += values.x;
    sum.y += values.y;
  }
  return sum.x + sum.y;
}

// What the rounded values of a tile add up to, a channel a place, by all threads of a CTA.
template <int kHeadSize, int kThreads>
__device__ __forceinline__ void write_sums(const uint8_t* values, float* out) {
  constexpr int kParts = kThreads / kHeadSize;  // threads of a channel
  constexpr int kHalfSteps = keys_of(kHeadSize) * 2 / kStepKeys;
  static_assert(kThreads % kHeadSize == 0 && kHalfSteps % kParts == 0, "all threads have as much");
  __shared__ float sums[kThreads];
  const int channel = threadIdx.x % kHeadSize;
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kHalfSteps / kParts; ++i) {
    const int half = threadIdx.x / kHeadSize + i * kParts;
    const int offset = (half / 2 * kHeadSize + channel) * kStepKeys + half % 2 * kChunkBytes;
    sum += sum_of_e4m3(*reinterpret_cast<const uint4*>(values + spread(offset)));
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kHeadSize) return;
#pragma unroll
  for (int part = 1; part < kParts; ++part) sum += sums[threadIdx.x + part * kHeadSize];
  out[threadIdx.x] = sum;
}

// A CTA takes a tile of keys and their values, or of pseudo-keys and theirs. These come later, when
// it is known what every output gets back: pseudo-values lose just that.
template <typename Element, int kHeadSize, bool kPseudo>
__global__ void __launch_bounds__(keys_of(kHeadSize) * kRowThreads)
    key_tiles_kernel(const __grid_constant__ EightBitSources p, int k_tiles) {
  constexpr int kKeys = keys_of(kHeadSize);
  constexpr int kThreads = kKeys * kRowThreads;
  using Part = RowPart<kHeadSize>;
  __shared__ alignas(16) uint8_t values[kKeys * kHeadSize / 256 * (256 + kChunkBytes)];
  __shared__ uint32_t largest[kThreads / 32];
  const Geometry& g = p.geometry;
  const bool by_windows = uses_windows(g, p.sparsity);
  const int blocks = by_windows ? g.k_windows.blocks : g.k_cut.blocks;
  const int block = kPseudo ? blocks + blockIdx.x : blockIdx.x;
  if (kPseudo ? !by_windows : block >= blocks) return;
  const int64_t batch_head = blockIdx.y;
  const int batch = blockIdx.y / g.heads;
  const int head = blockIdx.y % g.heads;
  const int row = threadIdx.x / kRowThreads;

  int keys = 0;
  const Element* k_row = nullptr;
  const Element* v_row = nullptr;
  if constexpr (kPseudo) {
    const int first = (block - blocks) * kKeys;
    const int windows = g.k_windows.windows();
    keys = min(kKeys, windows - first);
    const int64_t place = (batch_head * windows + first + row) * kHeadSize;
    k_row = static_cast<const Element*>(p.pseudo[0]) + place;
    v_row = static_cast<const Element*>(p.pseudo[1]) + place;
  } else {
    const int limit = key_count(p.kv_len, batch, static_cast<int32_t>(g.layout.tokens));
    const BlockTokens tokens =
        by_windows ? BlockTokens(g.k_windows, block, limit) : BlockTokens(g.k_cut, block, limit);
    keys = tokens.below;
    const int64_t token = row < keys ? tokens.token(row) : 0;
    const auto row_of = [&](EightBitTensor which) {
      const RainfusionStrides& strides = p.strides[which];
      return static_cast<const Element*>(p.tensor[which]) + batch * strides.batch +
             head * strides.head + token * strides.token;
    };
    k_row = row_of(kK);
    v_row = row_of(kV);
  }
  const bool real = row < keys;
  const float* centres = p.tiles.centres + batch_head * kCentres * kHeadSize;
  const int64_t tile = batch_head * k_tiles + block;

  Part key;
  Part value;
  key.load(k_row, real);
  value.load(v_row, real);
  key.for_each([&](float& x, int channel) {
    x = real ? x - __ldg(centres + kKeyCentre * kHeadSize + channel) : 0.f;
  });
  key.rotate();
  const uint32_t own = __reduce_max_sync(0xffffffffu, key.largest_bits());
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = own;

  value.for_each([&](float& x, int channel) {
    constexpr int kCentre = kPseudo ? kOutputCentre : kValueCentre;
    const float centre = __ldg(centres + kCentre * kHeadSize + channel);
    const float scale = __ldg(centres + kValueScale * kHeadSize + channel);
    x = real ? __fdividef(x - centre, scale) : 0.f;
  });
  value.pass_errors_on(real);
  value.for_each([&](float x, int channel) {
    values[spread(value_offset(kHeadSize, channel, row))] =
        __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
  });
  __syncthreads();

  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) bits = max(bits, largest[i]);
  const float amplitude = at_least_smallest(__uint_as_float(bits));
  constexpr int kBytes = kKeys * kHeadSize;
  key.write_integers(p.tiles.k + tile * kBytes, row, kLargestInteger / amplitude);
  uint4* out = reinterpret_cast<uint4*>(p.tiles.v + tile * kBytes);
  for (int i = threadIdx.x; i < kBytes / kChunkBytes; i += kThreads) {
    out[i] = *reinterpret_cast<const uint4*>(values + spread(i * kChunkBytes));
  }
  if (threadIdx.x == 0) {
    p.tiles.k_tile[tile] = {amplitude / kLargestInteger, kPseudo ? kPseudoKeys : keys, {0, 0}};
  }
  if constexpr (!kPseudo) {
    write_sums<kHeadSize, kThreads>(values, p.tiles.rounded_sums + tile * kHeadSize);
  }
}

// What the output gets back for the mean that values lost, and for the one that rounding left them
// with: numbers of 8 bits fall into the intervals of e4m3 in such a way that their errors do not
// cancel out over a channel, and a softmax over many keys shows little else. A CTA finishes a head.
template <int kHeadSize>
__global__ void __launch_bounds__(kCentreThreads)
    output_centres_kernel(const __grid_constant__ EightBitSources p, int k_tiles) {
  constexpr int kGroups = kCentreThreads / kHeadSize;
  __shared__ float sums[kGroups][kHeadSize];
  const Geometry& g = p.geometry;
  const int channel = threadIdx.x % kHeadSize;
  const int group = threadIdx.x / kHeadSize;
  const int tiles = uses_windows(g, p.sparsity) ? g.k_windows.blocks : g.k_cut.blocks;
  const float* own =
      p.tiles.rounded_sums + static_cast<int64_t>(blockIdx.x) * k_tiles * kHeadSize + channel;
  float sum = 0.f;
#pragma unroll 8
  for (int tile = group; tile < tiles; tile += kGroups) sum += own[tile * kHeadSize];
  sums[group][channel] = sum;
  __syncthreads();
  if (group != 0) return;
  for (int i = 1; i < kGroups; ++i) sum += sums[i][channel];
  const int limit =
      key_count(p.kv_len, blockIdx.x / g.heads, static_cast<int32_t>(g.layout.tokens));
  float* centres = p.tiles.centres + static_cast<int64_t>(blockIdx.x) * kCentres * kHeadSize;
  const float left = limit > 0 ? sum / static_cast<float>(limit) : 0.f;
  centres[kOutputCentre * kHeadSize + channel] = centres[kValueCentre * kHeadSize + channel] -
                                                 centres[kValueScale * kHeadSize + channel] * left;
}

}  // namespace

cudaError_t launch_eight_bit_tiles(const Geometry& geometry, const RainfusionTensors& tensors,
                                   const Workspace& workspace, cudaStream_t stream) {
  const EightBitSources sources{{tensors.q, tensors.k, tensors.v},
                                {tensors.q_strides, tensors.k_strides, tensors.v_strides},
                                {workspace.gathered_k, workspace.gathered_v},
                                workspace.eight_bit,
                                tensors.sparsity,
                                tensors.kv_len,
                                geometry};
  const cudaError_t error = launch_eight_bit_statistics(sources, stream);
  if (error != cudaSuccess) return error;
  const Geometry& g = geometry;
  return with_eight_bit_variant(g, [&](auto element, auto head_size) {
    using Element = typename decltype(element)::Type;
    constexpr int kHeadSize = head_size();
    const dim3 queries(g.q_tiles() * (kQueries / kQueryRows), g.batch_heads());
    query_tiles_kernel<Element, kHeadSize>
        <<<queries, kQueryRows * kRowThreads, 0, stream>>>(sources, g.q_tiles());
    const cudaError_t launched = cudaGetLastError();
    if (launched != cudaSuccess) return launched;
    const dim3 keys(g.k_tiles(), g.batch_heads());
    key_tiles_kernel<Element, kHeadSize, false>
        <<<keys, keys_of(kHeadSize) * kRowThreads, 0, stream>>>(sources, g.k_tiles());
    const cudaError_t rounded = cudaGetLastError();
    if (rounded != cudaSuccess) return rounded;
    output_centres_kernel<kHeadSize>
        <<<g.batch_heads(), kCentreThreads, 0, stream>>>(sources, g.k_tiles());
    const cudaError_t centred = cudaGetLastError();
    if (centred != cudaSuccess || !g.method.by_windows() || g.always_dense()) return centred;
    const dim3 pseudo(g.pseudo_tiles(), g.batch_heads());
    key_tiles_kernel<Element, kHeadSize, true>
        <<<pseudo, keys_of(kHeadSize) * kRowThreads, 0, stream>>>(sources, g.k_tiles());
    return cudaGetLastError();
  });
}

}  // namespace rainfusion
