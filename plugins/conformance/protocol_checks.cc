#include <functional>
#include <map>
#include <random>
#include <set>

#include "checks.h"
#include "rainfusion_layer.h"

namespace conformance {
namespace {

using trt_host::Builder;
using trt_host::Context;
using trt_host::Engine;

// What an engine's fields have beside the attributes.
constexpr const char* kLayoutName = "engine_layout";
constexpr const char* kWorkspaceName = "workspace_bytes";
constexpr int32_t kLayout = RAINFUSION_WORKSPACE_LAYOUT;

constexpr Size kSmall{1, 2, 2, 3, 5, 0, 64};
constexpr Size kClip{2, 3, 5, 9, 11, 37, 64};
constexpr Size kLarge{4, 3, 13, 30, 45, 226, 64};

struct Suite {
  trt_host::PluginLibrary& library;
  Report& report;

  nvinfer1::IPluginCreatorV3One& creator() { return rainfusion_creator(library); }

  void expect_error(bool refused, const std::string& words, const std::string& what) {
    report.expect(refused, what + " was accepted");
    report.expect(library.log().errors() > 0 && library.log().has(words),
                  what + ": no error with '" + words + "' in the log:" + library.log().all());
    library.log().clear();
  }
};

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
  suite.report.expect(identities.count("rainfusion::RainFusionAttention 1") == 1, "no creator");

  const nvinfer1::PluginFieldCollection* const names = suite.creator().getFieldNames();
  std::string found;
  for (int32_t i = 0; i < names->nbFields; ++i) found += std::string(names->fields[i].name) + " ";
  suite.report.expect(found == "text method alpha sink_frames scale ", "attributes are " + found);

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
      {"'scale' is -2", [](Fields& f) { f.number("scale", -2.0F); }},
      {"'sparsity' is unknown", [](Fields& f) { f.number("sparsity", 0.5F); }},
      {"'alpha' must be a float", [](Fields& f) { f.text("alpha", "0.9"); }},
      {"'text' must be a string", [](Fields& f) { f.number("text", int32_t{1}); }},
  };
  for (const auto& [words, change] : wrong) {
    Fields fields;
    change(fields);
    const Builder builder(suite.creator(), fields);
    suite.expect_error(!builder, words, "attribute " + words);
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

// Clips whose sizes are at most those of `max`, each on its own, and whose tokens are.
void add_random_clips(std::vector<Size>& clips, const Size& max) {
  std::mt19937 generator(5);
  const auto up_to = [&](int64_t largest) {
    return std::uniform_int_distribution<int64_t>(1, largest)(generator);
  };
  for (int i = 0; i < 100; ++i) {
    Size clip = max;
    clip.batch = up_to(max.batch);
    clip.grid_t = up_to(max.grid_t);
    clip.grid_h = up_to(max.grid_h);
    clip.grid_w = up_to(max.grid_w);
    clip.text_tokens = 0;
    const int64_t rest = max.tokens() - clip.tokens();
    if (rest < 1) continue;
    clip.text_tokens = up_to(rest);
    clips.push_back(clip);
  }
}

// One engine serves all sizes of its profile, whichever way they are cut into text and frames.
void check_workspace(Suite& suite) {
  suite.report.begin("workspace");
  auto* const size_of =
      suite.library.symbol<decltype(rainfusion_workspace_size)>("rainfusion_workspace_size");
  auto* const bound_of =
      suite.library.symbol<decltype(rainfusion_workspace_bound)>("rainfusion_workspace_bound");
  std::vector<Size> clips{{4, 3, 13, 30, 45, 226, 64},  {4, 3, 13, 45, 30, 226, 64},
                          {4, 3, 3, 45, 45, 11700, 64}, {4, 3, 3, 45, 45, 1, 64},
                          {2, 3, 5, 9, 11, 37, 64},     {1, 3, 13, 30, 45, 0, 64}};
  Size max = kLarge;
  max.grid_h = 45;
  max.text_tokens = kLarge.tokens() - max.grid_t * max.grid_h * max.grid_w;
  add_random_clips(clips, max);
  for (const char* method :
       {"rainfusion", "rainfusion_two_way", "rainfusion_plus", "rainfusion2"}) {
    Builder builder(suite.creator(), make_attributes("first", method));
    Engine engine;
    const std::string step =
        builder.build(make_inputs(kSmall, kClip, max, DataType::kHALF, false), &engine);
    suite.report.expect(step.empty(), "refused at " + step + suite.library.log().all());
    const auto code = static_cast<RainfusionMethod>(std::map<std::string, int>{
        {"rainfusion", 0}, {"rainfusion_two_way", 1}, {"rainfusion_plus", 2}, {"rainfusion2", 3}}
                                                        .at(method));
    size_t bound = 0;
    const RainfusionProblem largest = max.problem(RAINFUSION_TEXT_FIRST, code, RAINFUSION_FLOAT16);
    suite.report.expect(bound_of(&largest, &bound) == RAINFUSION_SUCCESS, "workspace bound");
    suite.report.expect(engine.workspace == bound + RAINFUSION_WORKSPACE_ALIGNMENT - 1,
                        "what is asked for leaves no room to align the start");
    for (const Size& clip : clips) {
      const RainfusionProblem problem =
          clip.problem(RAINFUSION_TEXT_FIRST, code, RAINFUSION_FLOAT16);
      size_t needed = 0;
      suite.report.expect(size_of(&problem, &needed) == RAINFUSION_SUCCESS, "workspace query");
      suite.report.expect(needed <= engine.workspace, std::string(method) + " needs " +
                                                          std::to_string(needed) + " bytes of " +
                                                          std::to_string(engine.workspace));
    }
  }
}

void check_engine(Suite& suite) {
  suite.report.begin("engine");
  Engine engine;
  Fields attributes;
  attributes.text("text", "first").text("method", "rainfusion_plus").number("alpha", 0.75F);
  attributes.number("sink_frames", int32_t{2}).number("scale", 0.125F);
  {
    Builder builder(suite.creator(), attributes);
    builder.build(make_inputs(kSmall, kClip, kLarge, DataType::kBF16, false), &engine);
  }
  Fields kept = attributes;
  kept.number(kLayoutName, kLayout);
  kept.number(kWorkspaceName, static_cast<int64_t>(engine.workspace));
  suite.report.expect(engine.fields == kept, "attributes and workspace survive the builder");
  Context context(suite.creator(), engine);
  suite.report.expect(static_cast<bool>(context), "context");
  const Fields restored(*context.plugin().runtime().getFieldsToSerialize());
  suite.report.expect(restored == kept, "attributes and workspace survive the engine file");
  suite.report.expect(context.set_shapes(kClip.inputs(false)), "shapes of a clip");
  suite.report.expect(context.set_shapes(kLarge.inputs(false)), "shapes of another clip");
  suite.report.expect(suite.library.log().errors() == 0, suite.library.log().all());
}

// TensorRT asks copies of the plugin for their workspace and saves copies: which, is its own
// affair.
void check_reservation(Suite& suite) {
  suite.report.begin("reservation");
  const std::vector<std::vector<Range>> profiles{
      make_inputs(kSmall, kClip, kClip, DataType::kHALF, false),
      make_inputs(kSmall, kClip, kLarge, DataType::kHALF, false),
      make_inputs(kSmall, kSmall, kSmall, DataType::kHALF, false)};
  const auto saved = [](size_t bytes) {
    return make_attributes()
        .number(kLayoutName, kLayout)
        .number(kWorkspaceName, static_cast<int64_t>(bytes));
  };
  const Builder builder(suite.creator(), make_attributes());

  suite.report.expect(trt_host::saved_fields(builder.plugin()) == saved(0), "nobody asked");
  suite.report.expect(suite.library.log().has("has not asked"),
                      "no warning about a workspace nobody asked for:" + suite.library.log().all());
  suite.library.log().clear();

  size_t largest = 0;
  std::set<size_t> sizes;
  for (const auto& profile : profiles) {
    const trt_host::Plugin copy = builder.plugin().clone();
    trt_host::configure(copy, profile);
    const size_t bytes = trt_host::ask_workspace(copy, profile);
    largest = std::max(largest, bytes);
    sizes.insert(bytes);
    suite.report.expect(trt_host::saved_fields(copy) == saved(bytes), "a copy for each profile");
    suite.report.expect(trt_host::saved_fields(copy.clone()) == saved(bytes), "its own copy");
  }
  suite.report.expect(sizes.size() == profiles.size(), "profiles differ");
  suite.report.expect(trt_host::saved_fields(builder.plugin().clone()) == saved(largest),
                      "a copy that was never asked has the most of its layer");
  const Builder other(suite.creator(), make_attributes());
  suite.report.expect(trt_host::saved_fields(other.plugin()) == saved(0), "another layer");

  const trt_host::Plugin one = other.plugin().clone();
  for (const auto& profile : profiles) {
    trt_host::configure(one, profile);
    trt_host::ask_workspace(one, profile);
  }
  suite.report.expect(trt_host::saved_fields(one) == saved(largest), "one copy for all profiles");

  // What an engine has does not grow by asking.
  Engine engine;
  engine.fields = saved(4096);
  Context context(suite.creator(), engine);
  trt_host::ask_workspace(context.plugin(), profiles[1]);
  suite.report.expect(trt_host::saved_fields(context.plugin()) == saved(4096), "a built engine");
  suite.library.log().clear();
}

// A profile that allows no frame, no token: an error, which getWorkspaceSize itself cannot report.
void check_empty_profile(Suite& suite) {
  suite.report.begin("empty profile");
  const auto good = make_inputs(kSmall, kSmall, kLarge, DataType::kHALF, false);
  const std::map<std::string, std::pair<size_t, Dims>> wrong{
      {"grid (T, H, W) = (0, 30, 45)", {3, {3, {0, 30, 45}}}},
      {"grid (T, H, W) = (13, 0, 45)", {3, {3, {13, 0, 45}}}},
      {"tokens = 0", {0, {4, {4, 3, 0, 64}}}}};
  for (const auto& [words, change] : wrong) {
    auto profile = good;
    profile[change.first].max = change.second;
    const Builder builder(suite.creator(), make_attributes());
    suite.expect_error(!trt_host::configure(builder.plugin(), profile), words, "configuration");
    suite.expect_error(trt_host::ask_workspace(builder.plugin(), profile) == 0, words, "workspace");
  }
}

// An engine that was built with less workspace than this library uses would be overrun.
void check_other_layouts(Suite& suite) {
  suite.report.begin("engines of other libraries");
  const auto refused = [&](const Fields& fields) {
    return suite.creator().createPlugin("layer", fields.collection(),
                                        nvinfer1::TensorRTPhase::kRUNTIME) == nullptr;
  };
  Fields fields = make_attributes();
  suite.expect_error(refused(fields), "build the engine again", "an engine without a layout");
  for (const int32_t layout : {2, kLayout - 1, kLayout + 1}) {
    fields.replace(kLayoutName, layout);
    suite.expect_error(refused(fields),
                       "of layout " + std::to_string(layout) + ", this one has layout " +
                           std::to_string(kLayout) + ": build the engine again",
                       "an engine of another layout");
  }
  fields.number("attribute_of_the_future", 1.0F);
  suite.expect_error(refused(fields), "build the engine again", "the layout comes first");

  fields = make_attributes().number(kLayoutName, kLayout);
  suite.expect_error(refused(fields), "build the engine again", "an engine without a workspace");
  fields.number(kWorkspaceName, int64_t{0});
  suite.expect_error(refused(fields), "build the engine again", "an engine that was not asked");
  fields.replace(kWorkspaceName, int64_t{1} << 32);
  suite.report.expect(!refused(fields), "4 GiB" + suite.library.log().all());
}

// The same of a library that forgot to raise its layout: an error before anything is launched,
// since neither the inputs nor the workspace here are memory.
void check_old_bound(Suite& suite) {
  suite.report.begin("engine of an older bound");
  Engine engine;
  Builder builder(suite.creator(), make_attributes("first"));
  builder.build(make_inputs(kSmall, kClip, kLarge, DataType::kHALF, false), &engine);
  const RainfusionProblem problem =
      kLarge.problem(RAINFUSION_TEXT_FIRST, RAINFUSION_METHOD_RAINFUSION, RAINFUSION_FLOAT16);
  size_t needed = 0;
  suite.library.symbol<decltype(rainfusion_workspace_size)>("rainfusion_workspace_size")(&problem,
                                                                                         &needed);
  constexpr size_t kAlignment = RAINFUSION_WORKSPACE_ALIGNMENT;
  char* const nowhere = reinterpret_cast<char*>(64 * kAlignment);
  const std::vector<const void*> inputs(5, nowhere);
  // The workspace as TensorRT may hand it over, and what then is left of it.
  for (const size_t shift : {size_t{0}, size_t{16}, kAlignment - 1}) {
    const size_t lost = shift == 0 ? 0 : kAlignment - shift;
    engine.fields.replace(kWorkspaceName, static_cast<int64_t>(needed + lost - 1));
    Context context(suite.creator(), engine);
    suite.report.expect(context.set_shapes(kLarge.inputs(false)), "shapes");
    suite.expect_error(!context.enqueue(inputs, nowhere, nowhere + shift, nullptr),
                       "the workspace has " + std::to_string(needed - 1) + " bytes, " +
                           std::to_string(needed) + " are needed",
                       "an engine with a byte too little");
  }
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
  Suite suite{library, report};
  for (auto* const check :
       {check_creator, check_attributes, check_build, check_formats, check_workspace,
        check_reservation, check_empty_profile, check_engine, check_other_layouts, check_old_bound,
        check_wrong_shapes, check_dynamic_head, check_enqueue_order}) {
    library.log().clear();
    check(suite);
  }
}

}  // namespace conformance
