// Division of small numbers by a divisor that the host knew, without a division on the device.
#pragma once

#include <cstdint>

#include "common/sparsity.h"

namespace rainfusion {

// Divides x >= 0 if x * divisor < 2^31.
struct Divisor {
  uint32_t multiplier;  // 2^31 / divisor, rounded up; 0 divides by infinity

  static Divisor of(int32_t divisor) {
    return {divisor < 1 ? 0 : static_cast<uint32_t>(ceil_div(int64_t{1} << 31, divisor))};
  }
#if defined(__CUDACC__)
  __device__ __forceinline__ int divide(int x) const { return __umulhi(2 * x, multiplier); }
#endif
};

}  // namespace rainfusion
