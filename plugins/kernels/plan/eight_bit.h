// The two steps that make 8-bit tiles.
#pragma once

#include "common/params.h"

namespace rainfusion {

struct EightBitSources {
  const void* tensor[3];  // q, k, v
  RainfusionStrides strides[3];
  const void* pseudo[2];  // keys and values that stand for windows
  EightBit tiles;
  const float* sparsity;
  const int32_t* kv_len;
  Geometry geometry;
};

enum EightBitTensor { kQ, kK, kV };

// Centres of keys and values, and scales of values, of every head.
cudaError_t launch_eight_bit_statistics(const EightBitSources& sources, cudaStream_t stream);

// What launch(TypeTag<Element>(), Constant<kHeadSize>()) returns, for head sizes of 8 bits.
template <typename Launch>
cudaError_t with_eight_bit_variant(const Geometry& g, const Launch& launch) {
  return with_variant(g.dtype, g.head_size, [&](auto element, auto head_size) {
    if constexpr (eight_bit::has_head_size(head_size())) {
      return launch(element, head_size);
    } else {
      return cudaErrorInvalidValue;
    }
  });
}

}  // namespace rainfusion
