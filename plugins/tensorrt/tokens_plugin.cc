#include "tokens_plugin.h"

#include <cstring>
#include <stdexcept>

#include "capabilities.h"
#include "logging.h"
#include "plugin.h"
#include "problem.h"
#include "rainfusion/parallel.h"
#include "stand_in.h"

namespace rainfusion::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

enum Input : int32_t { kTokens, kSizes, kInputs };
constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = 1;
constexpr const char* kAxisName = "axis";

const char* name_of(TokensKind kind) {
  return kind == TokensKind::kSplit ? "RainFusionSplit" : "RainFusionGather";
}

// That of `part`, or of `grid`.
int32_t rank_of_sizes(TokensKind kind) { return kind == TokensKind::kSplit ? 1 : 3; }

int64_t integer(const PluginField& field) {
  const bool wide = field.type == PluginFieldType::kINT64;
  if ((!wide && field.type != PluginFieldType::kINT32) || field.length != 1 ||
      field.data == nullptr) {
    throw std::invalid_argument("attribute 'axis' must be one integer");
  }
  return wide ? *static_cast<const int64_t*>(field.data) : *static_cast<const int32_t*>(field.data);
}

int32_t parse_axis(const nvinfer1::PluginFieldCollection* fields) {
  int64_t axis = -1;
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    const std::string name = field.name != nullptr ? field.name : "";
    if (name == "plugin_namespace" || name == "plugin_version") continue;
    if (name != kAxisName) {
      throw std::invalid_argument("attribute '" + name + "' is unknown; there is axis");
    }
    axis = integer(field);
    if (axis < 0 || axis >= Dims::MAX_DIMS) {
      throw std::invalid_argument("attribute 'axis' is " + std::to_string(axis) +
                                  "; it counts from 0");
    }
  }
  if (axis < 0) throw std::invalid_argument("attribute 'axis' is missing");
  return static_cast<int32_t>(axis);
}

// The whole as rows; `dims` are those of the tensor with all tokens.
RainfusionRows rows_of(const Dims& dims, int32_t axis, DataType type) {
  RainfusionRows rows{1, dims.d[axis], static_cast<int64_t>(element_bytes(type))};
  for (int32_t i = 0; i < axis; ++i) rows.outer *= dims.d[i];
  for (int32_t i = axis + 1; i < dims.nbDims; ++i) rows.row_bytes *= dims.d[i];
  return rows;
}

}  // namespace

TokensPlugin::TokensPlugin(TokensKind kind, int32_t axis, bool is_being_built)
    : kind_(kind),
      axis_(axis),
      is_being_built_(is_being_built),
      description_(std::string("axis=") + std::to_string(axis)),
      field_(kAxisName, &axis_, PluginFieldType::kINT32, 1),
      fields_{1, &field_} {}

TokensPlugin::TokensPlugin(const TokensPlugin& other)
    : TokensPlugin(other.kind_, other.axis_, other.is_being_built_) {}

const char* TokensPlugin::getPluginName() const noexcept { return name_of(kind_); }
const char* TokensPlugin::getPluginVersion() const noexcept { return kPluginVersion; }
const char* TokensPlugin::getPluginNamespace() const noexcept { return kPluginNamespace; }

nvinfer1::IPluginCapability* TokensPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  return capability_of(this, type);
}

nvinfer1::IPluginV3* TokensPlugin::clone() noexcept {
  return guarded_as(name_of(kind_), "clone", static_cast<TokensPlugin*>(nullptr),
                    [&] { return new TokensPlugin(*this); });
}

void TokensPlugin::check_ranks(int32_t inputs, int32_t outputs, int32_t tokens_rank,
                               int32_t sizes_rank) const {
  if (inputs != kInputs || outputs != 1) {
    throw std::invalid_argument("node has " + std::to_string(inputs) + " inputs and " +
                                std::to_string(outputs) + " outputs; it takes the tokens and " +
                                (kind_ == TokensKind::kSplit ? "part" : "grid") +
                                ", and has one output");
  }
  if (axis_ >= tokens_rank || sizes_rank != rank_of_sizes(kind_)) {
    throw std::invalid_argument(
        "inputs have " + std::to_string(tokens_rank) + " and " + std::to_string(sizes_rank) +
        " dimensions; with axis " + std::to_string(axis_) + " they need more than " +
        std::to_string(axis_) + ", and " + std::to_string(rank_of_sizes(kind_)));
  }
}

int32_t TokensPlugin::getOutputDataTypes(DataType* output_types, int32_t,
                                         const DataType* input_types, int32_t) const noexcept {
  output_types[0] = input_types[kTokens];
  return kSuccess;
}

int32_t TokensPlugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count,
                                      const DimsExprs*, int32_t, DimsExprs* outputs,
                                      int32_t output_count,
                                      nvinfer1::IExprBuilder& builder) noexcept {
  return guarded_as(name_of(kind_), "shapes", kFailure, [&] {
    check_ranks(input_count, output_count, input_count > 0 ? inputs[kTokens].nbDims : 0,
                input_count > 1 ? inputs[kSizes].nbDims : 0);
    const DimsExprs& sizes = inputs[kSizes];
    const nvinfer1::IDimensionExpr* tokens = sizes.d[0];
    for (int32_t i = 1; i < sizes.nbDims; ++i) {
      tokens = builder.operation(nvinfer1::DimensionOperation::kPROD, *tokens, *sizes.d[i]);
    }
    outputs[0] = inputs[kTokens];
    outputs[0].d[axis_] = tokens;
    return kSuccess;
  });
}

bool TokensPlugin::supportsFormatCombination(int32_t position,
                                             const DynamicPluginTensorDesc* tensors, int32_t,
                                             int32_t) noexcept {
  const PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (position == kSizes) return true;  // its values are never read
  if (position == kTokens) {
    return tensor.type != DataType::kINT4;
  }
  return tensor.type == tensors[kTokens].desc.type;
}

int32_t TokensPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                      const DynamicPluginTensorDesc*,
                                      int32_t output_count) noexcept {
  return guarded_as(name_of(kind_), "configuration", kFailure, [&] {
    check_ranks(input_count, output_count, inputs[kTokens].desc.dims.nbDims,
                inputs[kSizes].desc.dims.nbDims);
    return kSuccess;
  });
}

int32_t TokensPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count,
                                    const PluginTensorDesc*, int32_t output_count) noexcept {
  return guarded_as(name_of(kind_), "shape change", kFailure, [&] {
    check_ranks(input_count, output_count, inputs[kTokens].dims.nbDims, inputs[kSizes].dims.nbDims);
    return kSuccess;
  });
}

int32_t TokensPlugin::enqueue(const PluginTensorDesc* input_descs,
                              const PluginTensorDesc* output_descs, const void* const* inputs,
                              void* const* outputs, void*, cudaStream_t stream) noexcept {
  return guarded_as(name_of(kind_), "enqueue", kFailure, [&] {
    const Dims& from = input_descs[kTokens].dims;
    const Dims& to = output_descs[0].dims;
    const DataType type = input_descs[kTokens].type;
    if (is_being_built_) {
      zero_while_built(to, type, outputs[0], stream);
      return kSuccess;
    }
    const bool split = kind_ == TokensKind::kSplit;
    const RainfusionRows rows = rows_of(split ? from : to, axis_, type);
    const int64_t part = split ? to.d[axis_] : from.d[axis_];
    auto* const copy = split ? rainfusion_split_tokens : rainfusion_gather_tokens;
    check_status(copy(&rows, part, inputs[kTokens], outputs[0], stream));
    return kSuccess;
  });
}

nvinfer1::IPluginV3* TokensPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

TokensCreator::TokensCreator(TokensKind kind)
    : kind_(kind), field_(kAxisName, nullptr, PluginFieldType::kINT32, 1), fields_{1, &field_} {}

const char* TokensCreator::getPluginName() const noexcept { return name_of(kind_); }
const char* TokensCreator::getPluginVersion() const noexcept { return kPluginVersion; }
const char* TokensCreator::getPluginNamespace() const noexcept { return kPluginNamespace; }

nvinfer1::IPluginV3* TokensCreator::createPlugin(const char* name,
                                                 const nvinfer1::PluginFieldCollection* fields,
                                                 nvinfer1::TensorRTPhase phase) noexcept {
  return guarded_as(name_of(kind_), name != nullptr ? name : "",
                    static_cast<nvinfer1::IPluginV3*>(nullptr), [&] {
                      return new TokensPlugin(kind_, parse_axis(fields),
                                              phase == nvinfer1::TensorRTPhase::kBUILD);
                    });
}

}  // namespace rainfusion::tensorrt
