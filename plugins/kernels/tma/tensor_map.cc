#include "tma/tensor_map.h"

#include <numeric>

#include "common/element.h"

namespace rainfusion::tma {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

struct Driver {
  cudaError_t error;
  Encode encode;
};

// The driver's function, through the runtime: the library needs no link to the driver.
Driver find_driver() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult query = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &query);
  if (error != cudaSuccess) return {error, nullptr};
  if (query != cudaDriverEntryPointSuccess) return {cudaErrorNotSupported, nullptr};
  return {cudaSuccess, reinterpret_cast<Encode>(function)};
}

// Bytes between neighbours; where there is one element alone its stride is free, and may be odd.
cuuint64_t stride_bytes(int64_t stride, int64_t extent, int64_t head_size, int element_bytes) {
  return static_cast<cuuint64_t>(element_bytes * (extent > 1 ? stride : head_size));
}

CUtensorMapDataType data_type(RainfusionDtype dtype) {
  return dtype == RAINFUSION_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                     : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

constexpr int kRank = 5;  // dimensions of every map

// Calls the driver: `bytes` between neighbours along every dimension but the first.
cudaError_t encode_map(CUtensorMap* map, const void* base, RainfusionDtype dtype,
                       const cuuint64_t (&extents)[kRank], const cuuint64_t (&bytes)[kRank - 1],
                       const cuuint32_t (&box)[kRank], int column_bytes) {
  static const Driver driver = find_driver();
  if (driver.error != cudaSuccess) return driver.error;
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  const CUresult result =
      driver.encode(map, data_type(dtype), kRank, const_cast<void*>(base), extents, bytes, box,
                    steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                    column_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Describes [batch, heads, tokens, head_size] as columns of `tiles.column_elements` in tiles of
// `rows` tokens: element, token, column, head, batch.
cudaError_t encode(CUtensorMap* map, const void* tensor, const RainfusionStrides& strides,
                   const AttentionParams& p, int32_t tokens, RainfusionDtype dtype,
                   const TileSizes& tiles, int rows) {
  const int column = tiles.column_elements;
  const int columns = tiles.head_size / column;
  const int element = element_bytes(dtype);
  const int column_bytes = element * column;
  const cuuint64_t extents[kRank] = {
      static_cast<cuuint64_t>(column), static_cast<cuuint64_t>(tokens),
      static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(p.heads),
      static_cast<cuuint64_t>(p.batch)};
  const cuuint64_t bytes[kRank - 1] = {
      stride_bytes(strides.token, tokens, tiles.head_size, element),
      static_cast<cuuint64_t>(column_bytes),
      stride_bytes(strides.head, p.heads, tiles.head_size, element),
      stride_bytes(strides.batch, p.batch, tiles.head_size, element)};
  const cuuint32_t box[kRank] = {static_cast<cuuint32_t>(column), static_cast<cuuint32_t>(rows),
                                 static_cast<cuuint32_t>(columns), 1, 1};
  return encode_map(map, tensor, dtype, extents, bytes, box, column_bytes);
}

// Describes the windows of a tensor whose free tokens form the grid of `cut`: element, column, row
// and frame of the grid, head.
cudaError_t encode_boxes(BoxMap* boxes, const void* tensor, const RainfusionStrides& strides,
                         const AttentionParams& p, const WindowCut& cut, RainfusionDtype dtype,
                         const TileSizes& tiles) {
  const int element = element_bytes(dtype);
  const int64_t head = p.heads > 1 ? strides.head : 0;
  const int64_t batch = p.batch > 1 ? strides.batch : 0;
  const int64_t common = std::gcd(head, batch);  // 0 where there is one head alone
  const int64_t step = common != 0 ? common : tiles.head_size;
  const int64_t heads = 1 + (p.heads - 1) * (head / step) + (p.batch - 1) * (batch / step);
  if (heads < 1 || heads > INT32_MAX) return cudaErrorInvalidValue;
  boxes->head_step = static_cast<int32_t>(head / step);
  boxes->batch_step = static_cast<int32_t>(batch / step);
  const auto extent = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const cuuint64_t extents[kRank] = {extent(tiles.head_size), extent(cut.grid.w),
                                     extent(cut.grid.h), extent(cut.grid.t), extent(heads)};
  const int64_t token = element * strides.token;
  const cuuint64_t bytes[kRank - 1] = {extent(token), extent(token * cut.grid.w),
                                       extent(token * cut.grid.w * cut.grid.h),
                                       extent(element * step)};
  const auto side = [](int32_t x) { return static_cast<cuuint32_t>(x); };
  const cuuint32_t box[kRank] = {side(tiles.column_elements), side(cut.box.w), side(cut.box.h),
                                 side(cut.box.t), 1};
  const char* base = static_cast<const char*>(tensor) + token * cut.free_begin;
  return encode_map(&boxes->map, base, dtype, extents, bytes, box, element * tiles.column_elements);
}

}  // namespace

cudaError_t describe_tensors(RainfusionDtype dtype, const TileSizes& tiles, Params* params) {
  const AttentionParams& p = params->attention;
  const auto describe = [&](CUtensorMap* map, const void* tensor, const RainfusionStrides& strides,
                            int32_t tokens, int rows) {
    return encode(map, tensor, strides, p, tokens, dtype, tiles, rows);
  };
  const int32_t tokens = p.q_cut.tokens;
  cudaError_t error = describe(&params->q, p.q, p.q_strides, tokens, tiles.queries);
  if (error == cudaSuccess) error = describe(&params->k, p.k, p.k_strides, tokens, tiles.keys);
  if (error == cudaSuccess) error = describe(&params->v, p.v, p.v_strides, tokens, tiles.keys);
  if (error != cudaSuccess || p.gathered_k == nullptr) return error;
  const RainfusionStrides gathered = p.gathered_strides(tiles.head_size);
  error = describe(&params->gathered_k, p.gathered_k, gathered, p.gathered_rows, tiles.keys);
  if (error != cudaSuccess) return error;
  return describe(&params->gathered_v, p.gathered_v, gathered, p.gathered_rows, tiles.keys);
}

cudaError_t describe_windows(RainfusionDtype dtype, const TileSizes& tiles, WindowParams* params) {
  cudaError_t error = describe_tensors(dtype, tiles, params);
  const AttentionParams& p = params->attention;
  if (error != cudaSuccess || p.gathered_k == nullptr) return error;  // always dense
  params->k_row = Divisor::of(p.k_windows.counts.w);
  params->k_column = Divisor::of(p.k_windows.counts.h);
  const auto describe = [&](BoxMap* boxes, const void* tensor, const RainfusionStrides& strides,
                            const WindowCut& cut) {
    return encode_boxes(boxes, tensor, strides, p, cut, dtype, tiles);
  };
  error = describe(&params->q_boxes, p.q, p.q_strides, p.q_windows);
  if (error == cudaSuccess) error = describe(&params->k_boxes, p.k, p.k_strides, p.k_windows);
  if (error == cudaSuccess) error = describe(&params->v_boxes, p.v, p.v_strides, p.k_windows);
  return error;
}

}  // namespace rainfusion::tma
