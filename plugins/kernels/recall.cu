// ARM's recalls: how much of the attention among sampled tokens lies inside a band of the samples.
//
// A CTA takes 128 sampled queries of one head and walks over all sampled keys: scores on tensor
// cores, online sums of the whole mass and of the mass in each band, no values. It leaves the sum
// of its queries' recalls; decide.cu adds them up in a fixed order.

#include <cuda_runtime.h>

#include "launch.h"
#include "sampled_tokens.cuh"
#include "softmax.cuh"
#include "tile.cuh"

namespace rainfusion {
namespace {

constexpr int kRecallTileN = 64;

struct RecallParams {
  const void* q;
  const void* k;
  RainfusionStrides q_strides;
  RainfusionStrides k_strides;
  const float* sparsity;
  const int32_t* kv_len;
  float* partial_recall;
  Geometry geometry;
};

// Mass of a thread's four rows, all of it and inside each band.
template <int kBands>
struct Mass {
  RowStatistics all;
  float inside[kBands][kWarpTiles * 2];
};

template <int kBands>
__device__ __forceinline__ void rescale(Mass<kBands>& mass, const float (&maxima)[kWarpTiles * 2],
                                        float scale_log2) {
#pragma unroll
  for (int r = 0; r < kWarpTiles * 2; ++r) {
    const float larger = fmaxf(mass.all.maximum[r], maxima[r]);
    const float factor = exp2_fast((mass.all.maximum[r] - larger) * scale_log2);
    mass.all.maximum[r] = larger;
    mass.all.sum[r] *= factor;
#pragma unroll
    for (int b = 0; b < kBands; ++b) mass.inside[b][r] *= factor;
  }
}

// Adds a tile of scores. first_distance is that of the thread's first row and first key.
template <int kBands>
__device__ __forceinline__ void add_tile(Mass<kBands>& mass, const Scores<kRecallTileN>& s,
                                         int first_distance, const int (&widths)[kBands],
                                         float scale_log2) {
  float maxima[kWarpTiles * 2];
  row_maxima<kRecallTileN>(s, maxima);
  if (must_rescale(mass.all, maxima, scale_log2)) rescale(mass, maxima, scale_log2);
#pragma unroll
  for (int r = 0; r < kWarpTiles * 2; ++r) {
    const float reference = mass.all.maximum[r] * scale_log2;
#pragma unroll
    for (int n = 0; n < kRecallTileN / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float p = exp2_fast(fmaf(s[r / 2][n][r % 2 * 2 + i], scale_log2, -reference));
        const int distance = first_distance + r * 8 - n * 8 - i;
        mass.all.sum[r] += p;
#pragma unroll
        for (int b = 0; b < kBands; ++b) {
          if (abs(distance) < widths[b]) mass.inside[b][r] += p;
        }
      }
    }
  }
}

// Sum over the CTA's queries below `count` of the share inside each band.
template <int kBands>
__device__ void write_partial(const Mass<kBands>& mass, int first_row, int count, float* shared,
                              float* partial) {
#pragma unroll
  for (int b = 0; b < kBands; ++b) {
    float recall = 0.f;
#pragma unroll
    for (int r = 0; r < kWarpTiles * 2; ++r) {
      const float all = quad_sum(mass.all.sum[r]);
      const float inside = quad_sum(mass.inside[b][r]);
      if (first_row + r * 8 < count) recall += inside / all;
    }
#pragma unroll
    for (int lane = 4; lane < 32; lane *= 2) recall += __shfl_xor_sync(0xffffffffu, recall, lane);
    if (threadIdx.x % 32 == 0) shared[b * 4 + threadIdx.x / 32] = recall;
  }
  __syncthreads();
  if (threadIdx.x < kBands) {
    const float* sums = shared + threadIdx.x * 4;
    partial[threadIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
  }
}

template <int kHeadSize>
__device__ RowSource<int64_t> sample_source(const void* tensor, const RainfusionStrides& strides,
                                            int batch, int head, const SampledTokens& tokens) {
  const char* base =
      static_cast<const char*>(tensor) +
      2 * (batch * strides.batch + head * strides.head + tokens.base * strides.token);
  return row_source<kHeadSize, int64_t>(base, 2 * strides.token * tokens.step);
}

template <typename Element, int kHeadSize, int kBands>
__global__ void __launch_bounds__(kThreads, 2)
    recall_kernel(const __grid_constant__ RecallParams p) {
  using Shape = TileShape<kHeadSize>;
  constexpr int kTileBytes = kRecallTileN * Shape::kRowBytes;
  extern __shared__ __align__(1024) char smem[];
  __shared__ float warp_sums[kBands * 4];

  const Geometry& g = p.geometry;
  if (is_dense(g.layout, p.sparsity)) return;
  const int q_tile = blockIdx.x;
  const int sample = blockIdx.y;
  const int batch = blockIdx.z / g.heads;
  const int head = blockIdx.z % g.heads;
  const SampledTokens tokens =
      sampled_tokens(g.layout, sample, key_count(p.kv_len, batch, g.cut.tokens));
  const int q_begin = q_tile * kTileM;
  if (q_begin >= tokens.count) return;

  int widths[kBands];
  for (int b = 0; b < kBands; ++b) {
    const int64_t extent = sample == 0 ? g.layout.frame : g.layout.free_tokens;
    const int64_t width = band_width(band_at(g.method, *p.sparsity, b), extent);
    widths[b] = static_cast<int>(ceil_div(width, tokens.step));  // |i - j| * step < width
  }

  const auto queries = sample_source<kHeadSize>(p.q, p.q_strides, batch, head, tokens);
  const auto keys = sample_source<kHeadSize>(p.k, p.k_strides, batch, head, tokens);
  const uint32_t shared = shared_address(smem);
  const uint32_t key_tiles = shared + kTileM * Shape::kRowBytes;
  const auto copy_keys = [&](int tile) {
    copy_rows<kHeadSize, kRecallTileN, false>(
        key_tiles + tile % 2 * kTileBytes + copy_offset<kHeadSize>(), keys, tile * kRecallTileN,
        tokens.count - tile * kRecallTileN, nullptr);
  };
  copy_rows<kHeadSize, kTileM, false>(shared + copy_offset<kHeadSize>(), queries, q_begin,
                                      tokens.count - q_begin, nullptr);
  copy_keys(0);
  copy_async_commit();
  const uint32_t query_lane = shared + query_lane_offset<kHeadSize>();

  Mass<kBands> mass = {};
  mass.all.reset();
  const int lane = threadIdx.x % 32;
  const int first_row = q_begin + threadIdx.x / 32 * 32 + lane / 4;
  const float scale_log2 = g.softmax_scale * kLog2E;
  const int tiles = (tokens.count + kRecallTileN - 1) / kRecallTileN;
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is here; the last one is used up
    if (tile + 1 < tiles) copy_keys(tile + 1);
    copy_async_commit();
    Scores<kRecallTileN> s;
    multiply_keys<Element, kHeadSize, kRecallTileN>(
        s, query_lane, key_tiles + tile % 2 * kTileBytes + key_lane_offset<kHeadSize>());
    const int valid = tokens.count - tile * kRecallTileN;
    if (valid < kRecallTileN) mask_keys<kRecallTileN>(s, valid);
    add_tile(mass, s, first_row - tile * kRecallTileN - lane % 4 * 2, widths, scale_log2);
  }
  const int64_t place = (blockIdx.z * kSamples + sample) * kSampleTiles + q_tile;
  write_partial(mass, first_row, tokens.count, warp_sums, p.partial_recall + place * kMaxBands);
}

template <typename Element, int kHeadSize, int kBands>
cudaError_t launch(const RecallParams& params, cudaStream_t stream) {
  constexpr int kBytes = (kTileM + 2 * kRecallTileN) * TileShape<kHeadSize>::kRowBytes;
  const auto kernel = recall_kernel<Element, kHeadSize, kBands>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const Geometry& g = params.geometry;
  const int64_t samples = max64(local_sample(g.layout).count, global_sample(g.layout).count);
  const dim3 grid(static_cast<unsigned>(ceil_div(samples, kTileM)), kSamples, g.batch * g.heads);
  kernel<<<grid, kThreads, kBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename Element>
cudaError_t launch_for(const RecallParams& params, int head_size, cudaStream_t stream) {
  const bool plus = params.geometry.method == RAINFUSION_METHOD_PLUS;
  switch (head_size) {
    case 64:
      return plus ? launch<Element, 64, kMaxBands>(params, stream)
                  : launch<Element, 64, 1>(params, stream);
    case 96:
      return plus ? launch<Element, 96, kMaxBands>(params, stream)
                  : launch<Element, 96, 1>(params, stream);
    case 128:
      return plus ? launch<Element, 128, kMaxBands>(params, stream)
                  : launch<Element, 128, 1>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_recall(const Geometry& geometry, const RainfusionTensors& tensors,
                          const Workspace& workspace, RainfusionDtype dtype, int head_size,
                          cudaStream_t stream) {
  const RecallParams params{
      tensors.q,        tensors.k,      tensors.q_strides,        tensors.k_strides,
      tensors.sparsity, tensors.kv_len, workspace.partial_recall, geometry};
  return dtype == RAINFUSION_FLOAT16 ? launch_for<__half>(params, head_size, stream)
                                     : launch_for<__nv_bfloat16>(params, head_size, stream);
}

}  // namespace rainfusion
