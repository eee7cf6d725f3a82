// Attributes of RainFusionAttention: from and to TensorRT's plugin fields.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "rainfusion/rainfusion.h"

namespace rainfusion::tensorrt {

struct Attributes {
  RainfusionText text = RAINFUSION_TEXT_NONE;
  RainfusionMethod method = RAINFUSION_METHOD_RAINFUSION;
  float alpha = 0.9F;
  int32_t sink_frames = 1;
  float scale = 0.0F;    // 0 = 1 / sqrt(head size)
  int32_t parallel = 0;  // 1 = query, key and value are of the tokens of one of several GPUs
  // 8 bits: the layer has an input `bits`, whose length says in each call whether it is 8 or 16.
  RainfusionPrecision precision = RAINFUSION_PRECISION_16BIT;
  int32_t last_sink_frames = 0;
  std::vector<int32_t> exact_frames;  // begin and end of each range, in their order

  bool eight_bit() const { return precision == RAINFUSION_PRECISION_8BIT; }
};

// A layer as an engine's file has it.
struct SavedLayer {
  Attributes attributes;
  size_t workspace_bytes = 0;  // that the engine sets aside
};

// Names and types of the attributes, without values: what a creator announces to the parser.
const nvinfer1::PluginFieldCollection& attribute_names() noexcept;

// Attributes that are missing keep their default. Throws std::invalid_argument on an unknown name,
// a wrong type or a value out of range.
Attributes parse_attributes(const nvinfer1::PluginFieldCollection* fields);

// What SavedFields wrote. Throws std::invalid_argument too for an engine whose workspace has
// another layout than this library's, or which does not say how large it is.
SavedLayer parse_saved_layer(const nvinfer1::PluginFieldCollection* fields);

// For logs, metadata and the timing cache, for example "text=last method=rainfusion alpha=0.9 ...".
std::string describe(const Attributes& attributes);

// What an engine's file keeps of a layer, as plugin fields. Owns what they point to.
class SavedFields {
 public:
  explicit SavedFields(const Attributes& attributes);
  SavedFields(const SavedFields&) = delete;
  SavedFields& operator=(const SavedFields&) = delete;

  const nvinfer1::PluginFieldCollection* collection(size_t workspace_bytes) noexcept {
    workspace_bytes_ = static_cast<int64_t>(workspace_bytes);
    return &collection_;
  }

 private:
  Attributes attributes_;
  int64_t workspace_bytes_ = 0;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace rainfusion::tensorrt
