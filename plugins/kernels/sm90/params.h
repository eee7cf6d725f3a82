// What the Hopper kernel takes beside AttentionParams: the tensors as its copy engine sees them.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "common/launch.h"

namespace rainfusion::sm90 {

struct Params {
  CUtensorMap q;
  CUtensorMap k;
  CUtensorMap v;
  CUtensorMap gathered_k;  // of textural heads; not set where there can be none
  CUtensorMap gathered_v;
  AttentionParams attention;
  int32_t items;  // query blocks of all heads
};

struct TensorExtents {
  int32_t batch;
  int32_t heads;
  int32_t tokens;
  int32_t head_size;
};

// Describes [batch, heads, tokens, head_size] as columns of `column_elements` in tiles of `rows`
// tokens, in the layout of sm90::Tile. Rows past the last token read as zeros.
cudaError_t encode_tensor_map(CUtensorMap* map, const void* tensor,
                              const RainfusionStrides& strides, const TensorExtents& extents,
                              RainfusionDtype dtype, int column_elements, int rows);

}  // namespace rainfusion::sm90
