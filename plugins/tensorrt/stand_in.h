// What a layer of several GPUs does while an engine is built: TensorRT may time it then, alone.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace rainfusion::tensorrt {

// Bytes of an element; throws for types that share bytes.
inline size_t element_bytes(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kINT64:
      return 8;
    case nvinfer1::DataType::kFLOAT:
    case nvinfer1::DataType::kINT32:
      return 4;
    case nvinfer1::DataType::kHALF:
    case nvinfer1::DataType::kBF16:
      return 2;
    case nvinfer1::DataType::kINT8:
    case nvinfer1::DataType::kBOOL:
    case nvinfer1::DataType::kUINT8:
    case nvinfer1::DataType::kFP8:
      return 1;
    default:
      throw std::invalid_argument("an element type of less than a byte cannot be exchanged");
  }
}

// A builder has one GPU, a part of the tokens, and nobody to exchange with. What it times decides
// nothing, as the layer has one way to run.
inline void zero_while_built(const nvinfer1::Dims& dims, nvinfer1::DataType type, void* output,
                             cudaStream_t stream) {
  size_t bytes = element_bytes(type);
  for (int32_t i = 0; i < dims.nbDims; ++i) bytes *= static_cast<size_t>(dims.d[i]);
  const cudaError_t error = cudaMemsetAsync(output, 0, bytes, stream);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

}  // namespace rainfusion::tensorrt
