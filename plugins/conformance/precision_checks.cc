// Layers of 8 bits: their input `bits`, their workspace, and what has no kernel.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "suite.h"

namespace conformance {
namespace {

using trt_host::Builder;
using trt_host::Context;
using trt_host::Engine;

// Of a profile that has both precisions, as an exporter's files ask for.
std::vector<Range> with_bits(std::vector<Range> inputs) {
  inputs.push_back({{1, {8}}, {1, {8}}, {1, {16}}, DataType::kFLOAT});
  return inputs;
}

std::vector<Range> with_fixed_bits(std::vector<Range> inputs, const Dims& bits) {
  inputs.push_back(trt_host::fixed(bits, DataType::kFLOAT));
  return inputs;
}

RainfusionProblem problem_of(const Size& size, RainfusionPrecision precision) {
  RainfusionProblem problem =
      size.problem(RAINFUSION_TEXT_LAST, RAINFUSION_METHOD_PIECEWISE, RAINFUSION_FLOAT16);
  problem.precision = precision;
  return problem;
}

void check_fields(Suite& suite) {
  suite.report.begin("8 bits: fields");
  Fields wrong = make_attributes();
  wrong.text("precision", "4bit");
  suite.expect_error(!Builder(suite.creator(), wrong),
                     "'precision' is '4bit'; use one of 16bit, 8bit", "another precision");
  // Of 16 bits and no sinks at the end they keep what they kept before there were others.
  for (const bool named : {false, true}) {
    Fields attributes = make_attributes();
    if (named) attributes.text("precision", "16bit").number("last_sink_frames", int32_t{0});
    Builder builder(suite.creator(), attributes);
    Engine engine;
    builder.build(make_inputs(kSmall, kClip, kLarge, DataType::kHALF, false), &engine);
    Fields kept = make_attributes();
    kept.number(kLayoutName, kLayout);
    kept.number(kWorkspaceName, static_cast<int64_t>(engine.workspace));
    suite.report.expect(engine.fields == kept, "an engine names no defaults that came later");
    auto* const build = static_cast<nvinfer1::IPluginV3OneBuildV2*>(&builder.plugin().build());
    const std::string timing = build->getTimingCacheID();
    suite.report.expect(timing.find("bit") == std::string::npos, "nor does the timing cache");
    suite.report.expect(timing.find("last_sink") == std::string::npos, "nor does it these");
    suite.report.expect(timing.find("exact") == std::string::npos, "nor exact frames");
  }
}

// Every GPU whose mma.sync takes e4m3 has kernels, if it runs the library at all.
void check_gpus(Suite& suite) {
  suite.report.begin("8 bits: GPUs");
  auto* const check =
      suite.library.symbol<decltype(rainfusion_check_precision)>("rainfusion_check_precision");
  auto* const check_device =
      suite.library.symbol<decltype(rainfusion_check_device)>("rainfusion_check_device");
  for (int capability = 80; capability < 140; ++capability) {
    const int major = capability / 10;
    const int minor = capability % 10;
    char message[1024] = "";
    const bool runs = check_device(major, minor, nullptr, 0) == RAINFUSION_SUCCESS;
    const auto status = check(RAINFUSION_PRECISION_8BIT, major, minor, message, sizeof(message));
    const bool wanted = runs && capability >= 89;
    suite.report.expect(status == (wanted ? RAINFUSION_SUCCESS : RAINFUSION_UNSUPPORTED),
                        std::to_string(capability) + ": " + message);
    const std::string words = capability < 89 ? "use precision 16bit" : "cannot run this build";
    suite.report.expect(wanted == (std::string(message).find(words) == std::string::npos),
                        "words of the error: " + std::string(message));
    suite.report.expect(
        check(RAINFUSION_PRECISION_16BIT, major, minor, nullptr, 0) == RAINFUSION_SUCCESS,
        std::to_string(capability) + " in 16 bits");
  }
}

// One engine has both precisions, and the workspace of the one that needs more.
void check_layers(Suite& suite) {
  suite.report.begin("8 bits: layers");
  const std::string no_kernel = eight_bit_refusal(suite.library);
  auto* const bound_of =
      suite.library.symbol<decltype(rainfusion_workspace_bound)>("rainfusion_workspace_bound");
  for (const int64_t head_size : {64, 128}) {
    for (const bool kv_len : {false, true}) {
      Fields attributes = eight_bit_attributes();
      // Of frames that a layer has before its sizes are known: behind the first.
      if (kv_len) attributes.integers("exact_frames", {1, 2});
      std::vector<Size> sizes{kSmall, kClip, kLarge};
      for (Size& size : sizes) size.head_size = head_size;
      const auto inputs =
          with_bits(make_inputs(sizes[0], sizes[1], sizes[2], DataType::kHALF, kv_len));
      Builder builder(suite.creator(), attributes);
      Engine engine;
      const std::string step = builder.build(inputs, &engine);
      if (!suite.report.expect(step.empty(), "refused at " + step + suite.library.log().all())) {
        continue;
      }
      size_t most = 0;
      for (const auto precision : {RAINFUSION_PRECISION_16BIT, RAINFUSION_PRECISION_8BIT}) {
        RainfusionProblem largest = problem_of(sizes[2], precision);
        if (kv_len) largest.exact_frames[0] = {1, 2};
        size_t bound = 0;
        suite.report.expect(bound_of(&largest, &bound) == RAINFUSION_SUCCESS, "workspace bound");
        most = std::max(most, bound);
      }
      suite.report.expect(engine.workspace == most + RAINFUSION_WORKSPACE_ALIGNMENT - 1,
                          "the workspace is not that of the precision that needs more");
      Fields kept = attributes;
      kept.number(kLayoutName, kLayout);
      kept.number(kWorkspaceName, static_cast<int64_t>(engine.workspace));
      suite.report.expect(engine.fields == kept, "an engine keeps its precision");
      const Context context(suite.creator(), engine);
      suite.report.expect(static_cast<bool>(context) == no_kernel.empty(),
                          "a context and the library disagree about this GPU");
      if (!no_kernel.empty()) {
        suite.report.expect(suite.library.log().has(no_kernel), suite.library.log().all());
        suite.library.log().clear();
      }
    }
  }
}

void check_bits(Suite& suite) {
  suite.report.begin("8 bits: wrong inputs");
  const auto clip = make_inputs(kClip, DataType::kHALF, false);
  const auto masked = make_inputs(kClip, DataType::kHALF, true);
  const std::map<std::string, std::vector<Range>> wrong{
      {"bits has shape [7]; its length is the precision", with_fixed_bits(clip, {1, {7}})},
      {"bits has shape [8, 1]", with_fixed_bits(masked, {2, {8, 1}})},
      {"node has 5 inputs and 1 outputs; it takes query, key, value, grid, sparsity, optionally "
       "kv_len, and bits",
       clip},
      {"kv_len has shape [3]", with_fixed_bits(with_fixed_bits(clip, {1, {3}}), {1, {8}})},
  };
  for (const auto& [words, inputs] : wrong) {
    Builder builder(suite.creator(), eight_bit_attributes());
    suite.expect_error(!builder.infer_shapes(inputs), words, words);
  }
  Builder plain(suite.creator(), make_attributes());
  suite.expect_error(!plain.infer_shapes(with_bits(masked)), "node has 7 inputs",
                     "bits of a layer of 16 bits");

  Builder builder(suite.creator(), eight_bit_attributes());
  for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kINT32}) {
    auto inputs = with_bits(masked);
    inputs.back().type = type;
    suite.report.expect(builder.supports_formats(inputs), "bits may have any type");
    inputs[5].type = DataType::kINT64;
    suite.report.expect(!builder.supports_formats(inputs), "kv_len may not");
  }
}

// What has no kernel of 8 bits is refused as soon as it is known, and is never 16 bits.
void check_without_kernels(Suite& suite) {
  suite.report.begin("8 bits: no kernels");
  for (const bool dynamic : {false, true}) {
    Size min = dynamic ? kSmall : kClip;
    Size opt = kClip;
    Size max = dynamic ? kLarge : kClip;
    Builder textural(suite.creator(), make_attributes().text("precision", "8bit"));
    suite.expect_error(
        !textural.infer_shapes(with_bits(make_inputs(min, opt, max, DataType::kHALF, false))),
        "method rainfusion has no 8-bit kernel", "textural heads");
    min.head_size = opt.head_size = max.head_size = 96;
    Builder builder(suite.creator(), eight_bit_attributes());
    suite.expect_error(
        !builder.infer_shapes(with_bits(make_inputs(min, opt, max, DataType::kHALF, false))),
        "head_size = 96 has no 8-bit kernel", "head size 96");
  }
}

// The precision of a call is that of its shapes: an engine with a byte too little for either says
// so before anything is launched, as neither the inputs nor the workspace here are memory.
void check_calls(Suite& suite) {
  suite.report.begin("8 bits: calls");
  if (!eight_bit_refusal(suite.library).empty()) return;  // no context
  auto* const size_of =
      suite.library.symbol<decltype(rainfusion_workspace_size)>("rainfusion_workspace_size");
  Engine engine;
  Builder builder(suite.creator(), eight_bit_attributes());
  builder.build(with_bits(make_inputs(kSmall, kClip, kLarge, DataType::kHALF, false)), &engine);
  char* const nowhere = reinterpret_cast<char*>(64 * RAINFUSION_WORKSPACE_ALIGNMENT);
  const std::vector<const void*> pointers(6, nowhere);
  size_t needed[2] = {};
  for (const auto precision : {RAINFUSION_PRECISION_16BIT, RAINFUSION_PRECISION_8BIT}) {
    const RainfusionProblem problem = problem_of(kLarge, precision);
    size_of(&problem, &needed[precision]);
    engine.fields.replace(kWorkspaceName, static_cast<int64_t>(needed[precision] - 1));
    Context context(suite.creator(), engine);
    auto shapes = kLarge.inputs(false);
    shapes.push_back({1, {precision == RAINFUSION_PRECISION_8BIT ? 8 : 16}});
    suite.report.expect(context.set_shapes(shapes), "shapes" + suite.library.log().all());
    suite.expect_error(!context.enqueue(pointers, nowhere, nowhere, nullptr),
                       std::to_string(needed[precision]) + " are needed",
                       "a byte too little in precision " + std::to_string(precision));
  }
  suite.report.expect(needed[0] != needed[1], "what is needed tells the precision");
}

}  // namespace

std::string eight_bit_refusal(trt_host::PluginLibrary& library) {
  cudaDeviceProp gpu{};
  if (cudaGetDeviceProperties(&gpu, 0) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return "";
  }
  char message[1024] = "";
  library.symbol<decltype(rainfusion_check_precision)>("rainfusion_check_precision")(
      RAINFUSION_PRECISION_8BIT, gpu.major, gpu.minor, message, sizeof(message));
  return message;
}

void check_precision(trt_host::PluginLibrary& library, Report& report) {
  run_checks(
      library, report,
      {check_fields, check_gpus, check_layers, check_bits, check_without_kernels, check_calls});
}

}  // namespace conformance
