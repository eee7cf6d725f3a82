// What a CTA of a recall kernel computes: up to 128 sampled queries of a head, against all sampled
// keys.
#pragma once

#include "common/params.h"
#include "common/variants.h"

namespace rainfusion {

// Tokens base + i * step for i in [0, count), those at or past kv_len left out.
struct SampledTokens {
  int64_t base;
  int64_t step;
  int count;
};

__device__ inline SampledTokens sampled_tokens(const Geometry& g, Axis axis, int keys) {
  const Sample& s = g.samples[axis];
  const int64_t base = g.layout.free_begin();
  const int64_t below = keys > base ? ceil_div(keys - base, s.step) : 0;
  return {base, s.step, static_cast<int>(min64(s.count, below))};
}

template <typename Element, int kBands>
struct RecallTask {
  static constexpr int kBytes = ElementTraits<Element>::kBytes;

  SampledTokens tokens;
  int batch;
  int head;
  int q_begin;         // place of the first query in the sample
  int widths[kBands];  // of the bands, in places of the sample
  float* partial;      // where the sums go

  // Of a grid [query tiles, kAxes, batch * heads].
  __device__ explicit RecallTask(const RecallParams& p)
      : batch(blockIdx.z / p.geometry.heads),
        head(blockIdx.z % p.geometry.heads),
        q_begin(blockIdx.x * kSampleTileRows) {
    const Geometry& g = p.geometry;
    const Axis axis = static_cast<Axis>(blockIdx.y);
    tokens = sampled_tokens(g, axis, key_count(p.kv_len, batch, g.q_cut.tokens));
    for (int b = 0; b < kBands; ++b) {
      const int64_t width = band_width(g.method.band_at(*p.sparsity, b), g.layout.extent(axis));
      widths[b] = static_cast<int>(ceil_div(width, tokens.step));  // |i - j| * step < width
    }
    partial = p.partial_recall + partial_recall_place(blockIdx.z, axis, blockIdx.x);
  }

  // The first sampled row of a tensor; the others follow `row_bytes` apart.
  __device__ const char* rows(const void* tensor, const RainfusionStrides& strides) const {
    return static_cast<const char*>(tensor) +
           kBytes * (batch * strides.batch + head * strides.head + tokens.base * strides.token);
  }
  __device__ int64_t row_bytes(const RainfusionStrides& strides) const {
    return kBytes * strides.token * tokens.step;
  }
};

// Launches with the number of bands as a constant.
template <typename Launch>
cudaError_t with_bands(int bands, const Launch& launch) {
  return bands == 1 ? launch(Constant<1>()) : launch(Constant<kMaxBands>());
}

// Tiles of queries of the larger sample.
inline dim3 recall_grid(const Geometry& g) {
  const int64_t samples = max64(g.samples[kSpatial].count, g.samples[kTemporal].count);
  return dim3(static_cast<unsigned>(ceil_div(samples, kSampleTileRows)), kAxes, g.batch_heads());
}

}  // namespace rainfusion
