// What a kernel with a copy engine (TMA) takes: AttentionParams, and the tensors as the engine sees
// them.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "common/divisor.h"
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

// The non-sink tokens of a tensor as boxes: element, column, row and frame of the grid, head. Heads
// of all batch elements are one dimension, in steps of what divides the strides of both.
struct BoxMap {
  CUtensorMap map;
  int32_t head_step;
  int32_t batch_step;
};

// What a kernel by windows takes besides.
struct WindowParams : Params {
  BoxMap q_boxes;
  BoxMap k_boxes;
  BoxMap v_boxes;
  Divisor k_row;     // key window -> row of windows
  Divisor k_column;  // row of windows -> frame of windows
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

// The same with the boxes of its windows. What of a box is outside the grid reads as zeros.
cudaError_t describe_windows(RainfusionDtype dtype, const TileSizes& tiles, WindowParams* params);

}  // namespace rainfusion::tma
