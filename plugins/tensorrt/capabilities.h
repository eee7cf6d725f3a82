// What every plugin of version 3 here answers TensorRT's question for its interfaces with.
#pragma once

#include <NvInferRuntime.h>

namespace rainfusion::tensorrt {

// That part of a plugin which has a capability; nullptr for one that it does not have.
template <typename PluginV3>
nvinfer1::IPluginCapability* capability_of(PluginV3* plugin,
                                           nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(plugin);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuildV2*>(plugin);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(plugin);
  }
  return nullptr;
}

}  // namespace rainfusion::tensorrt
