#include "sm90/params.h"

namespace rainfusion::sm90 {
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
cuuint64_t stride_bytes(int64_t stride, int64_t extent, int64_t head_size) {
  return static_cast<cuuint64_t>(2 * (extent > 1 ? stride : head_size));
}

}  // namespace

cudaError_t encode_tensor_map(CUtensorMap* map, const void* tensor,
                              const RainfusionStrides& strides, const TensorExtents& tensor_extents,
                              RainfusionDtype dtype, int column_elements, int rows) {
  static const Driver driver = find_driver();
  if (driver.error != cudaSuccess) return driver.error;
  constexpr cuuint32_t kRank = 5;  // element, token, column, head, batch
  const auto [batch, heads, tokens, head_size] = tensor_extents;
  const int columns = head_size / column_elements;
  const cuuint64_t extents[kRank] = {
      static_cast<cuuint64_t>(column_elements), static_cast<cuuint64_t>(tokens),
      static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(heads),
      static_cast<cuuint64_t>(batch)};
  const cuuint64_t bytes[kRank - 1] = {
      stride_bytes(strides.token, tokens, head_size), static_cast<cuuint64_t>(2 * column_elements),
      stride_bytes(strides.head, heads, head_size), stride_bytes(strides.batch, batch, head_size)};
  const cuuint32_t box[kRank] = {static_cast<cuuint32_t>(column_elements),
                                 static_cast<cuuint32_t>(rows), static_cast<cuuint32_t>(columns), 1,
                                 1};
  const cuuint32_t steps[kRank] = {1, 1, 1, 1, 1};
  const CUresult result = driver.encode(
      map,
      dtype == RAINFUSION_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                  : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      kRank, const_cast<void*>(tensor), extents, bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      column_elements == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace rainfusion::sm90
