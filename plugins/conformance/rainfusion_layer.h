// The RainFusionAttention layers that the checks use.
#pragma once

#include <string>
#include <vector>

#include "layer.h"
#include "rainfusion/rainfusion.h"

namespace conformance {

using nvinfer1::DataType;
using trt_host::Dims;
using trt_host::Fields;
using trt_host::Range;

inline nvinfer1::IPluginCreatorV3One& rainfusion_creator(trt_host::PluginLibrary& library) {
  return library.creator("RainFusionAttention", "1", "rainfusion");
}

struct Size {
  int64_t batch;
  int64_t heads;
  int64_t grid_t;
  int64_t grid_h;
  int64_t grid_w;
  int64_t text_tokens;
  int64_t head_size;

  int64_t tokens() const { return grid_t * grid_h * grid_w + text_tokens; }
  Dims query() const { return {4, {batch, heads, tokens(), head_size}}; }
  Dims grid() const { return {3, {grid_t, grid_h, grid_w}}; }

  std::vector<Dims> inputs(bool kv_len) const {
    std::vector<Dims> dims{query(), query(), query(), grid(), {1, {1}}};
    if (kv_len) dims.push_back({1, {batch}});
    return dims;
  }

  RainfusionProblem problem(RainfusionText text, RainfusionMethod method,
                            RainfusionDtype dtype) const {
    RainfusionProblem problem{};
    problem.batch = static_cast<int32_t>(batch);
    problem.heads = static_cast<int32_t>(heads);
    problem.tokens = static_cast<int32_t>(tokens());
    problem.head_size = static_cast<int32_t>(head_size);
    problem.grid_t = static_cast<int32_t>(grid_t);
    problem.grid_h = static_cast<int32_t>(grid_h);
    problem.grid_w = static_cast<int32_t>(grid_w);
    problem.sink_frames = 1;
    problem.alpha = 0.9F;
    problem.text = text;
    problem.method = method;
    problem.dtype = dtype;
    return problem;
  }
};

// A profile whose sizes go from `min` to `max` on every axis.
inline std::vector<Range> make_inputs(const Size& min, const Size& opt, const Size& max,
                                      DataType type, bool kv_len) {
  const auto low = min.inputs(kv_len);
  const auto middle = opt.inputs(kv_len);
  const auto high = max.inputs(kv_len);
  std::vector<DataType> types{type, type, type, DataType::kINT64, DataType::kFLOAT};
  if (kv_len) types.push_back(DataType::kINT32);
  std::vector<Range> inputs;
  for (size_t i = 0; i < types.size(); ++i) {
    inputs.push_back({low[i], middle[i], high[i], types[i]});
  }
  return inputs;
}

inline std::vector<Range> make_inputs(const Size& size, DataType type, bool kv_len) {
  return make_inputs(size, size, size, type, kv_len);
}

inline Fields make_attributes(const std::string& text = "last",
                              const std::string& method = "rainfusion") {
  Fields fields;
  fields.text("text", text).text("method", method).number("alpha", 0.9F);
  fields.number("sink_frames", int32_t{1}).number("scale", 0.0F);
  fields.number("parallel", int32_t{0});
  return fields;
}

// A method without textural heads, which 8 bits do not have.
inline Fields eight_bit_attributes() {
  return make_attributes("last", "piecewise").text("precision", "8bit");
}

}  // namespace conformance
