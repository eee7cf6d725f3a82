// What the Hopper kernel takes beside AttentionParams: the tensors as its copy engine sees them.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "../launch.h"

namespace rainfusion::sm90 {

struct Params {
  CUtensorMap q;
  CUtensorMap k;
  CUtensorMap v;
  AttentionParams attention;
  int32_t items;  // query blocks of all heads
};

// Describes [batch, heads, tokens, head_size] as columns of `column_elements` in tiles of `rows`
// tokens, in the layout of sm90::Tile. Rows past the last token read as zeros.
cudaError_t encode_tensor_map(CUtensorMap* map, const void* tensor,
                              const RainfusionStrides& strides, const AttentionParams& params,
                              RainfusionDtype dtype, int head_size, int column_elements, int rows);

}  // namespace rainfusion::sm90
