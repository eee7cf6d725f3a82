#include "creator.h"

#include "attributes.h"
#include "logging.h"

namespace rainfusion::tensorrt {

nvinfer1::IPluginV3* Creator::createPlugin(const char* name,
                                           const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase phase) noexcept {
  return guarded(name != nullptr ? name : "", static_cast<nvinfer1::IPluginV3*>(nullptr), [&] {
    return phase == nvinfer1::TensorRTPhase::kRUNTIME ? new Plugin(parse_saved_layer(fields))
                                                      : new Plugin(parse_attributes(fields));
  });
}

const nvinfer1::PluginFieldCollection* Creator::getFieldNames() noexcept {
  return &attribute_names();
}

}  // namespace rainfusion::tensorrt
