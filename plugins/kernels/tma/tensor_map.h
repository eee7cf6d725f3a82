// What a kernel with a copy engine (TMA) takes: AttentionParams, and the tensors as the engine sees
// them.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "common/params.h"

namespace rainfusion::tma {

struct Params {
  CUtensorMap q;
  CUtensorMap k;
  CUtensorMap v;
  CUtensorMap gathered_k;  // of textural heads; not set where there can be none
  CUtensorMap gathered_v;
  AttentionParams attention;
  int32_t items;  // query blocks of all heads
};

// Sizes of the tiles that the maps copy, in the layout of tma::Tile.
struct TileSizes {
  int head_size;
  int column_elements;
  int queries;
  int keys;
};

// Sets the maps of `params`, which has its attention. Rows past the last token read as zeros.
cudaError_t describe_tensors(RainfusionDtype dtype, const TileSizes& tiles, Params* params);

}  // namespace rainfusion::tma
