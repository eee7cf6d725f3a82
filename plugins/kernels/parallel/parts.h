// How things in a row are cut into parts: the first have one more, as in torch.tensor_split.
#pragma once

#include <cstdint>

#include "common/geometry.h"

namespace rainfusion::parallel {

struct Parts {
  int32_t total;
  int32_t count;

  RAINFUSION_HOST_DEVICE int32_t size(int32_t rank) const {
    return (total - rank + count - 1) / count;
  }

  RAINFUSION_HOST_DEVICE int32_t begin(int32_t rank) const {
    const int32_t longer = total % count;  // parts that have one more
    return rank * (total / count) + (rank < longer ? rank : longer);
  }

  // The part that a thing is in.
  RAINFUSION_HOST_DEVICE int32_t owner(int32_t index) const {
    const int32_t least = total / count;
    const int32_t longer = total % count;
    const int32_t border = longer * (least + 1);
    return index < border ? index / (least + 1) : longer + (index - border) / least;
  }
};

}  // namespace rainfusion::parallel
