#include "attributes.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace rainfusion::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr std::array<const char*, 3> kTexts{"none", "first", "last"};
constexpr std::array<const char*, 4> kMethods{"rainfusion", "rainfusion_two_way", "rainfusion_plus",
                                              "rainfusion2"};

// A field of engines alone: no attribute of the operator.
constexpr const char* kLayoutName = "engine_layout";

[[noreturn]] void reject(const PluginField& field, const std::string& why) {
  throw std::invalid_argument("attribute '" + std::string(field.name) + "' " + why);
}

std::string read_string(const PluginField& field) {
  if (field.type != PluginFieldType::kCHAR) reject(field, "must be a string");
  const char* data = static_cast<const char*>(field.data);
  return std::string(data, strnlen(data, static_cast<size_t>(field.length)));
}

float read_float(const PluginField& field) {
  const bool wide = field.type == PluginFieldType::kFLOAT64;
  if (!wide && field.type != PluginFieldType::kFLOAT32) reject(field, "must be a float");
  if (field.length != 1) reject(field, "must be one number");
  const double value =
      wide ? *static_cast<const double*>(field.data) : *static_cast<const float*>(field.data);
  if (!std::isfinite(value)) reject(field, "must be finite");
  return static_cast<float>(value);
}

int32_t read_int(const PluginField& field) {
  const bool wide = field.type == PluginFieldType::kINT64;
  if (!wide && field.type != PluginFieldType::kINT32) reject(field, "must be an integer");
  if (field.length != 1) reject(field, "must be one number");
  const int64_t value =
      wide ? *static_cast<const int64_t*>(field.data) : *static_cast<const int32_t*>(field.data);
  if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
    reject(field, "is " + std::to_string(value) + "; it must not be negative");
  }
  return static_cast<int32_t>(value);
}

template <typename Enum, size_t count>
Enum read_choice(const PluginField& field, const std::array<const char*, count>& choices) {
  const std::string value = read_string(field);
  std::string known;
  for (size_t i = 0; i < count; ++i) {
    if (value == choices[i]) return static_cast<Enum>(i);
    known += (i == 0 ? "" : ", ") + std::string(choices[i]);
  }
  reject(field, "is '" + value + "'; use one of " + known);
}

void read_field(const PluginField& field, Attributes& attributes) {
  const std::string name = field.name;
  // The parser's own attributes, should a caller hand on all that the node has.
  if (name == "plugin_namespace" || name == "plugin_version") return;
  if (name == "text") {
    attributes.text = read_choice<RainfusionText>(field, kTexts);
  } else if (name == "method") {
    attributes.method = read_choice<RainfusionMethod>(field, kMethods);
  } else if (name == "alpha") {
    attributes.alpha = read_float(field);
    if (attributes.alpha < 0.0F || attributes.alpha > 1.0F) {
      reject(field, "is " + std::to_string(attributes.alpha) + "; a recall lies in [0, 1]");
    }
  } else if (name == "sink_frames") {
    attributes.sink_frames = read_int(field);
  } else if (name == "scale") {
    attributes.scale = read_float(field);
    if (attributes.scale < 0.0F) {
      reject(field, "is " + std::to_string(attributes.scale) +
                        "; use a positive scale, or 0 for 1/sqrt(head size)");
    }
  } else {
    reject(field, "is unknown; there are text, method, alpha, sink_frames and scale");
  }
}

int32_t length_of(const char* text) { return static_cast<int32_t>(std::strlen(text)); }

}  // namespace

const nvinfer1::PluginFieldCollection& attribute_names() noexcept {
  static const std::array<PluginField, 5> fields{
      PluginField{"text", nullptr, PluginFieldType::kCHAR, 0},
      PluginField{"method", nullptr, PluginFieldType::kCHAR, 0},
      PluginField{"alpha", nullptr, PluginFieldType::kFLOAT32, 1},
      PluginField{"sink_frames", nullptr, PluginFieldType::kINT32, 1},
      PluginField{"scale", nullptr, PluginFieldType::kFLOAT32, 1}};
  static const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(fields.size()),
                                                          fields.data()};
  return collection;
}

Attributes parse_attributes(const nvinfer1::PluginFieldCollection* fields,
                            nvinfer1::TensorRTPhase phase) {
  Attributes attributes;
  const int32_t count = fields != nullptr ? fields->nbFields : 0;
  int32_t layout = phase == nvinfer1::TensorRTPhase::kRUNTIME ? 0 : kEngineLayout;
  for (int32_t i = 0; i < count; ++i) {
    const PluginField& field = fields->fields[i];
    if (field.name == nullptr) throw std::invalid_argument("an attribute has no name");
    if (field.data == nullptr) reject(field, "has no value");
    if (std::strcmp(field.name, kLayoutName) == 0) {
      layout = read_int(field);
    } else {
      read_field(field, attributes);
    }
  }
  if (layout != kEngineLayout) {
    throw std::invalid_argument("the engine was built with a library of layout " +
                                std::to_string(layout) + ", this one has layout " +
                                std::to_string(kEngineLayout) + ": build the engine again");
  }
  return attributes;
}

std::string describe(const Attributes& attributes) {
  std::ostringstream text;
  text << "text=" << kTexts.at(attributes.text) << " method=" << kMethods.at(attributes.method)
       << " alpha=" << attributes.alpha << " sink_frames=" << attributes.sink_frames
       << " scale=" << attributes.scale;
  return text.str();
}

AttributeFields::AttributeFields(const Attributes& attributes) : attributes_(attributes) {
  const char* const text = kTexts.at(attributes_.text);
  const char* const method = kMethods.at(attributes_.method);
  fields_ = {PluginField{"text", text, PluginFieldType::kCHAR, length_of(text)},
             PluginField{"method", method, PluginFieldType::kCHAR, length_of(method)},
             PluginField{"alpha", &attributes_.alpha, PluginFieldType::kFLOAT32, 1},
             PluginField{"sink_frames", &attributes_.sink_frames, PluginFieldType::kINT32, 1},
             PluginField{"scale", &attributes_.scale, PluginFieldType::kFLOAT32, 1},
             PluginField{kLayoutName, &kEngineLayout, PluginFieldType::kINT32, 1}};
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

}  // namespace rainfusion::tensorrt
