// RainFusionAttention as a TensorRT plugin: IPluginV3 of version 1, namespace "rainfusion".
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "attributes.h"
#include "reservation.h"

namespace rainfusion::tensorrt {

constexpr const char* kPluginName = "RainFusionAttention";
constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "rainfusion";

// Holds the attributes, the number of inputs and the workspace that TensorRT sets aside. Copies of
// a layer share what was asked of any of them while it is built, execution contexts nothing.
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // A layer that is to be built.
  explicit Plugin(const Attributes& attributes);

  // A layer of an engine.
  explicit Plugin(const SavedLayer& layer);

  Plugin& operator=(const Plugin&) = delete;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override { return kPluginName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  // IPluginV3OneBuildV2
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs,
                             const nvinfer1::DataType* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t inputs, int32_t outputs) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) const noexcept override;
  const char* getTimingCacheID() noexcept override { return description_.c_str(); }
  const char* getMetadataString() noexcept override { return description_.c_str(); }

  // IPluginV3OneRuntime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs,
                        int32_t output_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs,
                  const nvinfer1::PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  Plugin(const Plugin& other);

  bool is_parallel() const { return attributes_.parallel != 0; }

  // Throws if a precision that the layer may compute in has no kernel for inputs of these sizes.
  void check_problems(const std::vector<nvinfer1::Dims>& inputs, nvinfer1::DataType type) const;

  Attributes attributes_;
  SavedFields fields_;
  std::string description_;
  bool is_being_built_ = true;
  mutable Reservation workspace_;  // asked for in getWorkspaceSize, which is const
  int32_t input_count_ = 0;        // enqueue is not told; onShapeChange always comes before it
  RainfusionPrecision precision_ = RAINFUSION_PRECISION_16BIT;  // of the shapes that it told
};

}  // namespace rainfusion::tensorrt
