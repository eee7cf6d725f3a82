// RainFusionSplit and RainFusionGather: a GPU's part of the video's tokens, and the whole again.
//
//   Split   whole [.., tokens, ..], part [n]      -> [.., n, ..]
//   Gather  part [.., n, ..],       grid [T, H, W] -> [.., T * H * W, ..]
//
// `axis` says which axis has the tokens. Of `part` and `grid` only the shape is read. How many GPUs
// there are is known when an engine runs, and TensorRT must know shapes before, so that the length
// of a part comes in as the length of a tensor.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace rainfusion::tensorrt {

enum class TokensKind { kSplit, kGather };

class TokensPlugin final : public nvinfer1::IPluginV3,
                           public nvinfer1::IPluginV3OneCore,
                           public nvinfer1::IPluginV3OneBuildV2,
                           public nvinfer1::IPluginV3OneRuntime {
 public:
  TokensPlugin(TokensKind kind, int32_t axis, bool is_being_built);
  TokensPlugin& operator=(const TokensPlugin&) = delete;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

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
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc*, int32_t,
                          const nvinfer1::DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    return 0;
  }
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
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    return &fields_;
  }

 private:
  TokensPlugin(const TokensPlugin& other);

  // Throws unless the inputs have the ranks that they must.
  void check_ranks(int32_t inputs, int32_t outputs, int32_t tokens_rank, int32_t sizes_rank) const;

  TokensKind kind_;
  int32_t axis_;
  bool is_being_built_;
  std::string description_;
  nvinfer1::PluginField field_;  // the axis
  nvinfer1::PluginFieldCollection fields_;
};

class TokensCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit TokensCreator(TokensKind kind);

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  TokensKind kind_;
  nvinfer1::PluginField field_;
  nvinfer1::PluginFieldCollection fields_;
};

}  // namespace rainfusion::tensorrt
