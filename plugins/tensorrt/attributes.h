// Attributes of RainFusionAttention: from and to TensorRT's plugin fields.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <string>

#include "rainfusion/rainfusion.h"

namespace rainfusion::tensorrt {

struct Attributes {
  RainfusionText text = RAINFUSION_TEXT_NONE;
  RainfusionMethod method = RAINFUSION_METHOD_RAINFUSION;
  float alpha = 0.9F;
  int32_t sink_frames = 1;
  float scale = 0.0F;  // 0 = 1 / sqrt(head size)
};

// What an engine relies on beside the attributes: the workspace it was built with. Raised whenever
// a library would need more than the last one asked for.
constexpr int32_t kEngineLayout = 2;

// Names and types of the attributes, without values: what a creator announces to the parser.
const nvinfer1::PluginFieldCollection& attribute_names() noexcept;

// Attributes that are missing keep their default. Throws std::invalid_argument on an unknown name,
// a wrong type or a value out of range, and on the fields of an engine of another layout.
Attributes parse_attributes(const nvinfer1::PluginFieldCollection* fields,
                            nvinfer1::TensorRTPhase phase);

// For logs, metadata and the timing cache, for example "text=last method=rainfusion alpha=0.9 ...".
std::string describe(const Attributes& attributes);

// Attributes as plugin fields that parse_attributes reads back. Owns what the fields point to.
class AttributeFields {
 public:
  explicit AttributeFields(const Attributes& attributes);
  AttributeFields(const AttributeFields&) = delete;
  AttributeFields& operator=(const AttributeFields&) = delete;

  const nvinfer1::PluginFieldCollection* collection() const noexcept { return &collection_; }

 private:
  Attributes attributes_;
  std::array<nvinfer1::PluginField, 6> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace rainfusion::tensorrt
