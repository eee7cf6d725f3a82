#include "tma/tensor_map.h"

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

// Describes [batch, heads, tokens, head_size] as columns of `tiles.column_elements` in tiles of
// `rows` tokens.
cudaError_t encode(CUtensorMap* map, const void* tensor, const RainfusionStrides& strides,
                   const AttentionParams& p, int32_t tokens, RainfusionDtype dtype,
                   const TileSizes& tiles, int rows) {
  static const Driver driver = find_driver();
  if (driver.error != cudaSuccess) return driver.error;
  constexpr cuuint32_t kRank = 5;  // element, token, column, head, batch
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
  const cuuint32_t steps[kRank] = {1, 1, 1, 1, 1};
  const CUresult result =
      driver.encode(map, data_type(dtype), kRank, const_cast<void*>(tensor), extents, bytes, box,
                    steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                    column_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
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

}  // namespace rainfusion::tma
