// The creator, attributes, shapes, formats and every wrong input.
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "suite.h"

namespace conformance {
namespace {

using trt_host::Builder;
using trt_host::Context;
using trt_host::Engine;

void check_creator(Suite& suite) {
  suite.report.begin("creator");
  std::set<std::string> identities;
  for (nvinfer1::IPluginCreatorInterface* creator : suite.library.creators()) {
    suite.report.expect(std::string(creator->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE",
                        "every creator makes plugins of version 3");
    const auto* const of = static_cast<const nvinfer1::IPluginCreatorV3One*>(creator);
    identities.insert(std::string(of->getPluginNamespace()) + "::" + of->getPluginName() + " " +
                      of->getPluginVersion());
  }
  suite.report.expect(identities.size() == suite.library.creators().size(), "creators differ");
  for (const char* const name : {"Attention", "Split", "Gather"}) {
    suite.report.expect(identities.count("rainfusion::RainFusion" + std::string(name) + " 1") == 1,
                        std::string("no creator of ") + name);
  }

  const nvinfer1::PluginFieldCollection* const names = suite.creator().getFieldNames();
  std::string found;
  for (int32_t i = 0; i < names->nbFields; ++i) found += std::string(names->fields[i].name) + " ";
  suite.report.expect(
      found ==
          "text method alpha sink_frames scale parallel precision last_sink_frames exact_frames ",
      "attributes are " + found);

  const Fields none;
  const Builder defaults(suite.creator(), none);
  suite.report.expect(static_cast<bool>(defaults), "every attribute has a default");
  auto& core = defaults.plugin().core();
  suite.report.expect(core.getPluginName() == std::string("RainFusionAttention"), "name");
  suite.report.expect(core.getPluginVersion() == std::string("1"), "version");
  suite.report.expect(core.getPluginNamespace() == std::string("rainfusion"), "namespace");
}

void check_attributes(Suite& suite) {
  suite.report.begin("attributes");
  using Change = std::function<void(Fields&)>;
  const std::map<std::string, Change> wrong{
      {"'text' is 'middle'", [](Fields& f) { f.text("text", "middle"); }},
      {"'method' is 'fast'", [](Fields& f) { f.text("method", "fast"); }},
      {"'alpha' is 1.5", [](Fields& f) { f.number("alpha", 1.5F); }},
      {"'sink_frames' is -1", [](Fields& f) { f.number("sink_frames", int32_t{-1}); }},
      {"'last_sink_frames' is -1", [](Fields& f) { f.number("last_sink_frames", int32_t{-1}); }},
      {"'last_sink_frames' must be an integer",
       [](Fields& f) { f.number("last_sink_frames", 1.0F); }},
      {"'exact_frames' has 3 numbers", [](Fields& f) { f.integers("exact_frames", {3, 4, 6}); }},
      {"'exact_frames' has 10 numbers; it takes the begin and the end of at most 4 ranges",
       [](Fields& f) { f.integers("exact_frames", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}); }},
      {"'exact_frames' is -1", [](Fields& f) { f.integers("exact_frames", {-1, 2}); }},
      {"'exact_frames' must be an integer",
       [](Fields& f) { f.numbers("exact_frames", {1.0F, 2.0F}); }},
      {"'scale' is -2", [](Fields& f) { f.number("scale", -2.0F); }},
      {"'sparsity' is unknown", [](Fields& f) { f.number("sparsity", 0.5F); }},
      {"'alpha' must be a float", [](Fields& f) { f.text("alpha", "0.9"); }},
      {"'alpha' must be finite", [](Fields& f) { f.number("alpha", std::nanf("")); }},
      {"'sink_frames' must be an integer", [](Fields& f) { f.number("sink_frames", 1.0F); }},
      {"'sink_frames' is 4294967296; it is too large",
       [](Fields& f) { f.number("sink_frames", int64_t{1} << 32); }},
      {"'scale' must be one number", [](Fields& f) { f.numbers("scale", {1.0F, 2.0F}); }},
      {"'text' must be a string", [](Fields& f) { f.number("text", int32_t{1}); }},
  };
  for (const auto& [words, change] : wrong) {
    Fields fields;
    change(fields);
    const Builder builder(suite.creator(), fields);
    suite.expect_error(!builder, words, "attribute " + words);
    // The same in an engine.
    fields.number(kLayoutName, kLayout).number(kWorkspaceName, int64_t{1} << 20);
    const trt_host::Plugin saved(suite.creator().createPlugin("layer", fields.collection(),
                                                              nvinfer1::TensorRTPhase::kRUNTIME));
    suite.expect_error(!saved, words, "an engine's attribute " + words);
  }
}

void check_build(Suite& suite) {
  suite.report.begin("build");
  for (const DataType type : {DataType::kHALF, DataType::kBF16}) {
    for (const bool kv_len : {false, true}) {
      Builder builder(suite.creator(), make_attributes());
      Engine engine;
      const auto inputs = make_inputs(kSmall, kClip, kLarge, type, kv_len);
      const std::string step = builder.build(inputs, &engine);
      if (!suite.report.expect(step.empty(),
                               "refused at " + step + ":" + suite.library.log().all())) {
        continue;
      }
      suite.report.expect(builder.plugin().build().getNbOutputs() == 1, "one output");
      const nvinfer1::DimsExprs& out = builder.output_exprs();
      suite.report.expect(out.nbDims == 4, "output has 4 dimensions");
      for (int32_t i = 0; i < 4; ++i) {
        suite.report.expect(out.d[i] == builder.input_exprs(0).d[i], "output is shaped as query");
      }
    }
  }
}

void check_formats(Suite& suite) {
  suite.report.begin("formats");
  Builder builder(suite.creator(), make_attributes());
  const auto good = make_inputs(kClip, DataType::kHALF, true);
  for (const DataType type :
       {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT32, DataType::kINT64,
        DataType::kINT8, DataType::kBOOL, DataType::kUINT8, DataType::kFP8}) {
    auto inputs = good;
    inputs[3].type = type;
    suite.report.expect(builder.supports_formats(inputs), "grid may have any type");
  }
  const std::map<int, DataType> wrong{{0, DataType::kFLOAT},   // query
                                      {1, DataType::kBF16},    // key differs from query
                                      {4, DataType::kHALF},    // sparsity
                                      {5, DataType::kINT64}};  // kv_len
  for (const auto& [input, type] : wrong) {
    auto inputs = good;
    inputs[static_cast<size_t>(input)].type = type;
    suite.report.expect(!builder.supports_formats(inputs),
                        "wrong type of input " + std::to_string(input));
  }
  auto descs = trt_host::describe(good);
  descs.push_back(descs[0]);
  descs[0].desc.format = nvinfer1::TensorFormat::kCHW32;
  suite.report.expect(!builder.plugin().build().supportsFormatCombination(0, descs.data(), 6, 1),
                      "linear only");
  suite.library.log().clear();
}

void check_wrong_shapes(Suite& suite) {
  suite.report.begin("wrong shapes");
  const auto good = make_inputs(kClip, DataType::kHALF, true);
  using Change = std::function<void(std::vector<Range>&)>;
  const auto replace = [](size_t input, const Dims& dims) -> Change {
    return [=](std::vector<Range>& inputs) {
      inputs[input] = trt_host::fixed(dims, inputs[input].type);
    };
  };
  Size odd_head = kClip;
  odd_head.head_size = 80;
  const std::map<std::string, Change> wrong{
      {"head_size = 80",
       [&](auto& inputs) { inputs = make_inputs(odd_head, DataType::kHALF, true); }},
      {"tokens = 532 is less than", replace(3, {3, {6, 9, 11}})},
      {"grid has shape [5, 99]", replace(3, {2, {5, 99}})},
      {"key has shape [2, 3, 531, 64]", replace(1, {4, {2, 3, 531, 64}})},
      {"sparsity has shape [2]", replace(4, {1, {2}})},
      {"kv_len has shape [3]", replace(5, {1, {3}})},
      {"node has 4 inputs", [](auto& inputs) { inputs.resize(4); }},
  };
  for (const auto& [words, change] : wrong) {
    auto inputs = good;
    change(inputs);
    Builder builder(suite.creator(), make_attributes());
    suite.expect_error(!builder.infer_shapes(inputs), words, "build with " + words);
    if (inputs.size() < 5) continue;

    Engine engine;
    builder.build(good, &engine);
    Context context(suite.creator(), engine);
    std::vector<Dims> dims;
    for (const Range& input : inputs) dims.push_back(input.opt);
    suite.expect_error(!context.set_shapes(dims), words, "run with " + words);
  }
  Builder untexted(suite.creator(), make_attributes("none"));
  suite.expect_error(!untexted.infer_shapes(good), "text is \"none\"", "text tokens without text");
}

// Head sizes are checked as soon as they are known, other sizes when they are.
void check_dynamic_head(Suite& suite) {
  suite.report.begin("dynamic sizes");
  Size min = kSmall;
  Size max = kLarge;
  min.head_size = max.head_size = 80;
  Builder builder(suite.creator(), make_attributes());
  suite.expect_error(!builder.infer_shapes(make_inputs(min, min, max, DataType::kHALF, false)),
                     "head_size = 80", "head size 80 with dynamic tokens");
}

void check_enqueue_order(Suite& suite) {
  suite.report.begin("enqueue");
  Engine engine;
  Builder builder(suite.creator(), make_attributes());
  builder.build(make_inputs(kClip, DataType::kHALF, false), &engine);
  Context context(suite.creator(), engine);
  suite.expect_error(!context.enqueue({}, nullptr, nullptr, nullptr), "before onShapeChange",
                     "enqueue before shapes are known");
}

}  // namespace

void check_protocol(trt_host::PluginLibrary& library, Report& report) {
  run_checks(library, report,
             {check_creator, check_attributes, check_build, check_formats, check_wrong_shapes,
              check_dynamic_head, check_enqueue_order});
}

}  // namespace conformance
