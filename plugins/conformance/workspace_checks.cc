// The workspace that an engine asks for, keeps and hands over, and engines of other layouts.
#include <map>
#include <random>
#include <set>

#include "suite.h"

namespace conformance {
namespace {

using trt_host::Builder;
using trt_host::Context;
using trt_host::Engine;

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
  for (const auto& [method, code] : methods_of(suite.library)) {
    Builder builder(suite.creator(), make_attributes("first", method));
    Engine engine;
    const std::string step =
        builder.build(make_inputs(kSmall, kClip, max, DataType::kHALF, false), &engine);
    suite.report.expect(step.empty(), "refused at " + step + suite.library.log().all());
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
      suite.report.expect(needed <= engine.workspace, method + " needs " + std::to_string(needed) +
                                                          " bytes of " +
                                                          std::to_string(engine.workspace));
    }
  }
}

void check_engine(Suite& suite) {
  suite.report.begin("engine");
  Engine engine;
  Fields attributes;
  attributes.text("text", "first").text("method", "rainfusion2").number("alpha", 0.75F);
  attributes.number("sink_frames", int32_t{2}).number("scale", 0.125F);
  attributes.number("parallel", int32_t{0}).number("last_sink_frames", int32_t{3});
  attributes.integers("exact_frames", {1, 2, 3, 5});
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

}  // namespace

void check_workspaces(trt_host::PluginLibrary& library, Report& report) {
  run_checks(library, report,
             {check_workspace, check_reservation, check_empty_profile, check_engine,
              check_other_layouts, check_old_bound});
}

}  // namespace conformance
