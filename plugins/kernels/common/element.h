// The element types of q, k, v and out: their sizes, and calls with the type of a dtype.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "common/sparsity.h"
#include "rainfusion/rainfusion.h"

namespace rainfusion {

constexpr int kChunkBytes = 16;  // that a thread copies at once, and that swizzles move
constexpr int kStepBytes = 32;   // of a row that one instruction of the tensor cores takes

template <typename Element, RainfusionDtype kDtype_>
struct ElementSizes {
  static constexpr RainfusionDtype kDtype = kDtype_;
  static constexpr int kBytes = sizeof(Element);
  static constexpr int kPerChunk = kChunkBytes / kBytes;
  static constexpr int kPerStep = kStepBytes / kBytes;
};

// An element type is an entry here and in with_element. What the tensor cores do with it is in
// common/ptx.cuh and in the folders of the architectures.
template <typename Element>
struct ElementTraits;

template <>
struct ElementTraits<__half> : ElementSizes<__half, RAINFUSION_FLOAT16> {
  static __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
  static __device__ __forceinline__ __half from_float(float x) { return __float2half_rn(x); }
};

template <>
struct ElementTraits<__nv_bfloat16> : ElementSizes<__nv_bfloat16, RAINFUSION_BFLOAT16> {
  static __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ __nv_bfloat16 from_float(float x) {
    return __float2bfloat16_rn(x);
  }
};

template <typename T>
struct TypeTag {
  using Type = T;
};

// What function(TypeTag<Element>()) returns for the element of a dtype, `otherwise` if there is
// none.
template <typename Result, typename Function>
constexpr Result with_element(RainfusionDtype dtype, Result otherwise, const Function& function) {
  switch (dtype) {
    case RAINFUSION_FLOAT16:
      return function(TypeTag<__half>());
    case RAINFUSION_BFLOAT16:
      return function(TypeTag<__nv_bfloat16>());
  }
  return otherwise;
}

// 0 for a dtype without an element type.
constexpr int element_bytes(RainfusionDtype dtype) {
  return with_element(dtype, 0, [](auto element) {
    return ElementTraits<typename decltype(element)::Type>::kBytes;
  });
}

}  // namespace rainfusion
