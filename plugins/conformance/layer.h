// One layer on its way through TensorRT: network, engine, execution context.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <utility>
#include <vector>

#include "trt_host.h"

namespace trt_host {

using Dims = nvinfer1::Dims;

// An input of a network with an optimisation profile. Dimensions that differ are dynamic.
struct Range {
  Dims min;
  Dims opt;
  Dims max;
  nvinfer1::DataType type;

  Dims network_dims() const {
    Dims dims = opt;
    for (int32_t i = 0; i < dims.nbDims; ++i) {
      if (min.d[i] != max.d[i]) dims.d[i] = -1;
    }
    return dims;
  }
};

inline Range fixed(const Dims& dims, nvinfer1::DataType type) { return {dims, dims, dims, type}; }

// What an engine file keeps of a layer.
struct Engine {
  Fields fields;
  std::vector<nvinfer1::DataType> types;  // of the inputs
  size_t workspace = 0;
};

inline nvinfer1::PluginTensorDesc describe(const Dims& dims, nvinfer1::DataType type) {
  return {dims, type, nvinfer1::TensorFormat::kLINEAR, -1.0F};
}

inline std::vector<nvinfer1::DynamicPluginTensorDesc> describe(const std::vector<Range>& inputs) {
  std::vector<nvinfer1::DynamicPluginTensorDesc> descs;
  for (const Range& input : inputs) {
    descs.push_back({describe(input.network_dims(), input.type), input.min, input.max, input.opt});
  }
  return descs;
}

inline int32_t count(const std::vector<Range>& inputs) {
  return static_cast<int32_t>(inputs.size());
}

// Steps of the build phase that TensorRT takes with copies of a plugin, profile by profile.
inline bool configure(const Plugin& copy, const std::vector<Range>& profile) {
  const auto descs = describe(profile);
  return copy.build().configurePlugin(descs.data(), count(profile), &descs[0], 1) == 0;
}

inline size_t ask_workspace(const Plugin& copy, const std::vector<Range>& profile) {
  const auto descs = describe(profile);
  return copy.build().getWorkspaceSize(descs.data(), count(profile), &descs[0], 1);
}

inline Fields saved_fields(const Plugin& copy) {
  return Fields(*copy.runtime().getFieldsToSerialize());
}

// Takes a layer with one output through the build phase.
class Builder {
 public:
  Builder(nvinfer1::IPluginCreatorV3One& creator, const Fields& attributes)
      : plugin_(creator.createPlugin("layer", attributes.collection(),
                                     nvinfer1::TensorRTPhase::kBUILD)) {}

  explicit operator bool() const { return static_cast<bool>(plugin_); }
  const Plugin& plugin() const { return plugin_; }

  // The output's symbolic dimensions; false if the plugin refuses.
  bool infer_shapes(const std::vector<Range>& inputs) {
    input_exprs_.clear();
    for (const Range& input : inputs) {
      input_exprs_.push_back(expressions_.expressions(input.network_dims()));
    }
    output_exprs_ = {};
    return plugin_.build().getOutputShapes(input_exprs_.data(), count(inputs), nullptr, 0,
                                           &output_exprs_, 1, expressions_) == 0;
  }

  const nvinfer1::DimsExprs& input_exprs(size_t input) const { return input_exprs_[input]; }
  const nvinfer1::DimsExprs& output_exprs() const { return output_exprs_; }

  bool supports_formats(const std::vector<Range>& inputs) {
    auto descs = describe(inputs);
    descs.push_back(descs[0]);
    for (int32_t i = 0; i < static_cast<int32_t>(descs.size()); ++i) {
      if (!plugin_.build().supportsFormatCombination(i, descs.data(), count(inputs), 1)) {
        return false;
      }
    }
    return true;
  }

  // Empty if all went well, else the step at which the plugin refused.
  std::string build(const std::vector<Range>& inputs, Engine* engine) {
    std::vector<nvinfer1::DataType> types;
    for (const Range& input : inputs) types.push_back(input.type);
    nvinfer1::DataType output_type{};
    if (plugin_.build().getOutputDataTypes(&output_type, 1, types.data(), count(inputs)) != 0) {
      return "types";
    }
    if (!infer_shapes(inputs)) return "shapes";
    const Plugin tactic = plugin_.clone();  // TensorRT configures copies
    if (!supports_formats(inputs)) return "formats";
    if (!configure(tactic, inputs)) return "configuration";
    engine->workspace = ask_workspace(tactic, inputs);
    engine->fields = saved_fields(tactic);
    engine->types = types;
    return {};
  }

 private:
  Plugin plugin_;
  ExpressionBuilder expressions_;
  std::vector<nvinfer1::DimsExprs> input_exprs_;
  nvinfer1::DimsExprs output_exprs_{};
};

// An execution context of a deserialised engine.
class Context {
 public:
  Context(nvinfer1::IPluginCreatorV3One& creator, const Engine& engine)
      : engine_(engine), plugin_(nullptr) {
    const Plugin original(creator.createPlugin("layer", engine.fields.collection(),
                                               nvinfer1::TensorRTPhase::kRUNTIME));
    if (!original) throw std::runtime_error("the engine's plugin was refused");
    plugin_ = Plugin(original.runtime().attachToContext(nullptr));
  }

  explicit operator bool() const { return static_cast<bool>(plugin_); }
  const Plugin& plugin() const { return plugin_; }

  bool set_shapes(const std::vector<Dims>& inputs) {
    inputs_.clear();
    for (size_t i = 0; i < inputs.size(); ++i) {
      inputs_.push_back(describe(inputs[i], engine_.types[i]));
    }
    output_ = inputs_[0];
    return plugin_.runtime().onShapeChange(inputs_.data(), static_cast<int32_t>(inputs_.size()),
                                           &output_, 1) == 0;
  }

  bool enqueue(const std::vector<const void*>& inputs, void* output, void* workspace,
               cudaStream_t stream) {
    return plugin_.runtime().enqueue(inputs_.data(), &output_, inputs.data(), &output, workspace,
                                     stream) == 0;
  }

 private:
  Engine engine_;
  Plugin plugin_;
  std::vector<nvinfer1::PluginTensorDesc> inputs_;
  nvinfer1::PluginTensorDesc output_{};
};

}  // namespace trt_host
