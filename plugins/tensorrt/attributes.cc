#include "attributes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace rainfusion::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

constexpr std::array<const char*, 3> kTexts{"none", "first", "last"};

const char* text_name(RainfusionText text) {
  return text >= 0 && static_cast<size_t>(text) < kTexts.size() ? kTexts[text] : nullptr;
}

constexpr std::array<const char*, 2> kPrecisions{"16bit", "8bit"};

const char* precision_name(RainfusionPrecision precision) {
  return precision >= 0 && static_cast<size_t>(precision) < kPrecisions.size()
             ? kPrecisions[precision]
             : nullptr;
}

// Fields of engines alone: no attributes of the operator.
constexpr const char* kLayoutName = "engine_layout";
constexpr const char* kWorkspaceName = "workspace_bytes";
constexpr int32_t kLayout = RAINFUSION_WORKSPACE_LAYOUT;

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

// The number at a place of an integer field.
template <typename Int>
Int read_int_at(const PluginField& field, int32_t place) {
  const bool wide = field.type == PluginFieldType::kINT64;
  if (!wide && field.type != PluginFieldType::kINT32) reject(field, "must be an integer");
  const int64_t value = wide ? static_cast<const int64_t*>(field.data)[place]
                             : static_cast<const int32_t*>(field.data)[place];
  if (value < 0) reject(field, "is " + std::to_string(value) + "; it must not be negative");
  if (value > std::numeric_limits<Int>::max()) {
    reject(field, "is " + std::to_string(value) + "; it is too large");
  }
  return static_cast<Int>(value);
}

template <typename Int>
Int read_int(const PluginField& field) {
  const auto value = field.length == 1 ? read_int_at<Int>(field, 0) : Int{-1};
  if (value < 0) reject(field, "must be one number");
  return value;
}

// Begins and ends of at most as many ranges of frames as a problem has; whether they are in order,
// the problem's check says.
std::vector<int32_t> read_ranges(const PluginField& field) {
  if (field.length < 0 || field.length % 2 != 0 || field.length > 2 * RAINFUSION_EXACT_RANGES) {
    reject(field, "has " + std::to_string(field.length) + " numbers; it takes the begin and the " +
                      "end of at most " + std::to_string(RAINFUSION_EXACT_RANGES) +
                      " ranges of frames");
  }
  std::vector<int32_t> numbers;
  for (int32_t i = 0; i < field.length; ++i) numbers.push_back(read_int_at<int32_t>(field, i));
  return numbers;
}

// The value of that name; `name_of` names all values from 0 on, then nullptr.
template <typename Enum>
Enum read_choice(const PluginField& field, const char* (*name_of)(Enum)) {
  const std::string value = read_string(field);
  std::string known;
  for (int32_t i = 0; const char* const name = name_of(static_cast<Enum>(i)); ++i) {
    if (value == name) return static_cast<Enum>(i);
    known += (i == 0 ? "" : ", ") + std::string(name);
  }
  reject(field, "is '" + value + "'; use one of " + known);
}

float read_alpha(const PluginField& field) {
  const float alpha = read_float(field);
  if (alpha >= 0.0F && alpha <= 1.0F) return alpha;
  reject(field, "is " + std::to_string(alpha) + "; a recall lies in [0, 1]");
}

float read_scale(const PluginField& field) {
  const float scale = read_float(field);
  if (scale >= 0.0F) return scale;
  reject(field,
         "is " + std::to_string(scale) + "; use a positive scale, or 0 for 1/sqrt(head size)");
}

int32_t read_flag(const PluginField& field) {
  const auto flag = read_int<int32_t>(field);
  if (flag <= 1) return flag;
  reject(field, "is " + std::to_string(flag) + "; use 0 or 1");
}

// Where an attribute's value lies.
struct Value {
  const void* data;
  int32_t length;
};

Value value_of(const char* text) { return {text, static_cast<int32_t>(std::strlen(text))}; }

Value value_of(const std::vector<int32_t>& numbers) {
  return {numbers.data(), static_cast<int32_t>(numbers.size())};
}

template <typename Number>
Value value_of(const Number& number) {
  return {&number, 1};
}

struct Attribute {
  const char* name;
  PluginFieldType type;
  void (*read)(const PluginField& field, Attributes& attributes);
  Value (*value)(const Attributes& attributes);
  // Whether it is told. What came later than engines and timing caches of layers without it is told
  // where it is not its default, so that these stay as they were. Null: always.
  bool (*told)(const Attributes& attributes) = nullptr;
};

constexpr std::array<Attribute, 9> kAttributes{{
    {"text", PluginFieldType::kCHAR,
     [](const PluginField& f, Attributes& a) { a.text = read_choice(f, text_name); },
     [](const Attributes& a) { return value_of(text_name(a.text)); }},
    {"method", PluginFieldType::kCHAR,
     [](const PluginField& f, Attributes& a) { a.method = read_choice(f, rainfusion_method_name); },
     [](const Attributes& a) { return value_of(rainfusion_method_name(a.method)); }},
    {"alpha", PluginFieldType::kFLOAT32,
     [](const PluginField& f, Attributes& a) { a.alpha = read_alpha(f); },
     [](const Attributes& a) { return value_of(a.alpha); }},
    {"sink_frames", PluginFieldType::kINT32,
     [](const PluginField& f, Attributes& a) { a.sink_frames = read_int<int32_t>(f); },
     [](const Attributes& a) { return value_of(a.sink_frames); }},
    {"scale", PluginFieldType::kFLOAT32,
     [](const PluginField& f, Attributes& a) { a.scale = read_scale(f); },
     [](const Attributes& a) { return value_of(a.scale); }},
    {"parallel", PluginFieldType::kINT32,
     [](const PluginField& f, Attributes& a) { a.parallel = read_flag(f); },
     [](const Attributes& a) { return value_of(a.parallel); }},
    {"precision", PluginFieldType::kCHAR,
     [](const PluginField& f, Attributes& a) { a.precision = read_choice(f, precision_name); },
     [](const Attributes& a) { return value_of(precision_name(a.precision)); },
     [](const Attributes& a) { return a.precision != RAINFUSION_PRECISION_16BIT; }},
    {"last_sink_frames", PluginFieldType::kINT32,
     [](const PluginField& f, Attributes& a) { a.last_sink_frames = read_int<int32_t>(f); },
     [](const Attributes& a) { return value_of(a.last_sink_frames); },
     [](const Attributes& a) { return a.last_sink_frames != 0; }},
    {"exact_frames", PluginFieldType::kINT32,
     [](const PluginField& f, Attributes& a) { a.exact_frames = read_ranges(f); },
     [](const Attributes& a) { return value_of(a.exact_frames); },
     [](const Attributes& a) { return !a.exact_frames.empty(); }},
}};

bool is_told(const Attribute& attribute, const Attributes& attributes) {
  return attribute.told == nullptr || attribute.told(attributes);
}

bool is_named(const PluginField& field, const char* name) {
  return std::strcmp(field.name, name) == 0;
}

void read_attribute(const PluginField& field, Attributes& attributes) {
  // The parser's own attributes, should a caller hand on all that the node has.
  if (is_named(field, "plugin_namespace") || is_named(field, "plugin_version")) return;
  std::string known;
  for (const Attribute& attribute : kAttributes) {
    if (is_named(field, attribute.name)) return attribute.read(field, attributes);
    known += (known.empty() ? "" : ", ") + std::string(attribute.name);
  }
  reject(field, "is unknown; there are " + known);
}

std::vector<PluginField> named_fields(const PluginFieldCollection* collection) {
  if (collection == nullptr) return {};
  std::vector<PluginField> fields(collection->fields, collection->fields + collection->nbFields);
  for (const PluginField& field : fields) {
    if (field.name == nullptr) throw std::invalid_argument("an attribute has no name");
    if (field.data == nullptr) reject(field, "has no value");
  }
  return fields;
}

// Takes the field of that name out of `fields`; 0 if there is none.
template <typename Int>
Int take_int(std::vector<PluginField>& fields, const char* name) {
  const auto found = std::find_if(fields.begin(), fields.end(),
                                  [&](const PluginField& field) { return is_named(field, name); });
  if (found == fields.end()) return 0;
  const Int value = read_int<Int>(*found);
  fields.erase(found);
  return value;
}

}  // namespace

const PluginFieldCollection& attribute_names() noexcept {
  static const auto fields = [] {
    std::array<PluginField, kAttributes.size()> names;
    std::transform(kAttributes.begin(), kAttributes.end(), names.begin(), [](const Attribute& a) {
      return PluginField{a.name, nullptr, a.type, a.type == PluginFieldType::kCHAR ? 0 : 1};
    });
    return names;
  }();
  static const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return collection;
}

Attributes parse_attributes(const PluginFieldCollection* fields) {
  Attributes attributes;
  for (const PluginField& field : named_fields(fields)) read_attribute(field, attributes);
  return attributes;
}

SavedLayer parse_saved_layer(const PluginFieldCollection* collection) {
  std::vector<PluginField> fields = named_fields(collection);
  const auto layout = take_int<int32_t>(fields, kLayoutName);
  if (layout !=
      kLayout) {  // before anything else, which another library may have written otherwise
    throw std::invalid_argument("the engine was built with a library of layout " +
                                std::to_string(layout) + ", this one has layout " +
                                std::to_string(kLayout) + ": build the engine again");
  }
  SavedLayer layer;
  layer.workspace_bytes = static_cast<size_t>(take_int<int64_t>(fields, kWorkspaceName));
  if (layer.workspace_bytes == 0) {
    throw std::invalid_argument(
        "the engine does not say how much workspace it has (workspace_bytes = 0), which layout " +
        std::to_string(kLayout) + " requires: build the engine again");
  }
  for (const PluginField& field : fields) read_attribute(field, layer.attributes);
  return layer;
}

std::string describe(const Attributes& attributes) {
  std::ostringstream text;
  for (const Attribute& attribute : kAttributes) {
    if (!is_told(attribute, attributes)) continue;
    const Value value = attribute.value(attributes);
    text << (text.tellp() == 0 ? "" : " ") << attribute.name << '=';
    if (attribute.type == PluginFieldType::kCHAR) {
      text.write(static_cast<const char*>(value.data), value.length);
    } else if (attribute.type == PluginFieldType::kINT32) {
      const auto* const numbers = static_cast<const int32_t*>(value.data);
      for (int32_t i = 0; i < value.length; ++i) text << (i == 0 ? "" : ",") << numbers[i];
    } else {
      text << *static_cast<const float*>(value.data);
    }
  }
  return text.str();
}

SavedFields::SavedFields(const Attributes& attributes) : attributes_(attributes) {
  for (const Attribute& attribute : kAttributes) {
    if (!is_told(attribute, attributes_)) continue;
    const Value value = attribute.value(attributes_);
    fields_.emplace_back(attribute.name, value.data, attribute.type, value.length);
  }
  fields_.emplace_back(kLayoutName, &kLayout, PluginFieldType::kINT32, 1);
  fields_.emplace_back(kWorkspaceName, &workspace_bytes_, PluginFieldType::kINT64, 1);
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

}  // namespace rainfusion::tensorrt
