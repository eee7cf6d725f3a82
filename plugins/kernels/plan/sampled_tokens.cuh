// The tokens of ARM's samples.
#pragma once

#include "common/params.h"

namespace rainfusion {

// Tokens base + i * step for i in [0, count), those at or past kv_len left out.
struct SampledTokens {
  int64_t base;
  int64_t step;
  int count;
};

__device__ inline SampledTokens sampled_tokens(const Geometry& g, int sample, int keys) {
  const Sample& s = g.samples[sample];
  const int64_t base = g.layout.free_begin();
  const int64_t below = keys > base ? ceil_div(keys - base, s.step) : 0;
  return {base, s.step, static_cast<int>(min64(s.count, below))};
}

}  // namespace rainfusion
