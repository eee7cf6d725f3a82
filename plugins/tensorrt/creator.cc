#include "creator.h"

#include "attributes.h"
#include "logging.h"

namespace rainfusion::tensorrt {

nvinfer1::IPluginV3* Creator::createPlugin(char const* name,
                                           nvinfer1::PluginFieldCollection const* fields,
                                           nvinfer1::TensorRTPhase phase) noexcept {
  return guarded(name != nullptr ? name : "", static_cast<nvinfer1::IPluginV3*>(nullptr),
                 [&] { return new Plugin(parse_attributes(fields, phase)); });
}

nvinfer1::PluginFieldCollection const* Creator::getFieldNames() noexcept {
  return &attribute_names();
}

}  // namespace rainfusion::tensorrt
