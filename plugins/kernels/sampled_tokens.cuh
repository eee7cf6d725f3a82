// The tokens of ARM's samples.
#pragma once

#include "params.h"

namespace rainfusion {

// Tokens base + i * step for i in [0, count), those at or past kv_len left out.
struct SampledTokens {
  int64_t base;
  int64_t step;
  int count;
};

__device__ inline SampledTokens sampled_tokens(const TokenLayout& layout, int sample, int keys) {
  const Sample s = sample == 0 ? local_sample(layout) : global_sample(layout);
  const int64_t base = layout.token_of_raster(0);
  const int64_t below = keys > base ? ceil_div(keys - base, s.step) : 0;
  return {base, s.step, static_cast<int>(min64(s.count, below))};
}

}  // namespace rainfusion
