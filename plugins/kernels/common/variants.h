// What kernels are instantiated for, and launches with a variant's type and sizes as constants. The
// build makes a source file of each (plugins/cmake/KernelArchitecture.cmake).
#pragma once

#include <type_traits>

#include "common/element.h"

namespace rainfusion {

constexpr int kHeadSizes[] = {64, 96, 128};
constexpr int kHeadSizeCount = sizeof(kHeadSizes) / sizeof(kHeadSizes[0]);

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// What launch(Constant<kHeadSize>()) returns.
template <int kFirst = 0, typename Launch>
cudaError_t with_head_size(int head_size, const Launch& launch) {
  if constexpr (kFirst < kHeadSizeCount) {
    return head_size == kHeadSizes[kFirst] ? launch(Constant<kHeadSizes[kFirst]>())
                                           : with_head_size<kFirst + 1>(head_size, launch);
  }
  return cudaErrorInvalidValue;
}

// What launch(TypeTag<Element>(), Constant<kHeadSize>()) returns.
template <typename Launch>
cudaError_t with_variant(RainfusionDtype dtype, int head_size, const Launch& launch) {
  return with_element(dtype, cudaErrorInvalidValue, [&](auto element) {
    return with_head_size(head_size, [&](auto size) { return launch(element, size); });
  });
}

}  // namespace rainfusion
