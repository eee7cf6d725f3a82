// Makes RainFusionAttention plugins from attributes, for the parser and for saved engines.
#pragma once

#include <NvInferRuntime.h>

#include "plugin.h"

namespace rainfusion::tensorrt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
  char const* getPluginName() const noexcept override { return kPluginName; }
  char const* getPluginVersion() const noexcept override { return kPluginVersion; }
  char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
};

}  // namespace rainfusion::tensorrt
