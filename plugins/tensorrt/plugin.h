// RainFusionAttention as a TensorRT plugin: IPluginV3 of version 1, namespace "rainfusion".
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "attributes.h"

namespace rainfusion::tensorrt {

constexpr char const* kPluginName = "RainFusionAttention";
constexpr char const* kPluginVersion = "1";
constexpr char const* kPluginNamespace = "rainfusion";

// Holds the attributes and the number of inputs, nothing else: contexts share no state.
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(Attributes const& attributes);

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  char const* getPluginName() const noexcept override { return kPluginName; }
  char const* getPluginVersion() const noexcept override { return kPluginVersion; }
  char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  // IPluginV3OneBuildV2
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs,
                             nvinfer1::DataType const* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
                          nvinfer1::DimsExprs const* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                 int32_t inputs, int32_t outputs) noexcept override;
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                          nvinfer1::DynamicPluginTensorDesc const* outputs,
                          int32_t output_count) noexcept override;
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                          nvinfer1::DynamicPluginTensorDesc const* outputs,
                          int32_t output_count) const noexcept override;
  char const* getTimingCacheID() noexcept override { return description_.c_str(); }
  char const* getMetadataString() noexcept override { return description_.c_str(); }

  // IPluginV3OneRuntime
  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                        nvinfer1::PluginTensorDesc const* outputs,
                        int32_t output_count) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* input_descs,
                  nvinfer1::PluginTensorDesc const* output_descs, void const* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  Attributes attributes_;
  AttributeFields fields_;
  std::string description_;
  int32_t input_count_ = 0;  // enqueue is not told; onShapeChange always comes before it
};

}  // namespace rainfusion::tensorrt
