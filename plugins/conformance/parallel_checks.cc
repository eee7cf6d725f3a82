// Layers of several GPUs: their creators, shapes, formats and what an engine keeps of them.
#include <map>
#include <string>
#include <vector>

#include "rainfusion/parallel.h"
#include "suite.h"

namespace conformance {
namespace {

using trt_host::Builder;
using trt_host::Context;
using trt_host::Engine;

constexpr const char* kSplit = "RainFusionSplit";
constexpr const char* kGather = "RainFusionGather";

Fields axis_of(int64_t axis) {
  Fields fields;
  fields.number("axis", axis);
  return fields;
}

// [batch, tokens, channels] of all or of a part, with the shape that the output is of.
std::vector<Range> split_inputs(DataType type) {
  return {{{3, {1, 24, 8}}, {3, {1, 60, 8}}, {3, {2, 120, 8}}, type},
          {{1, {3}}, {1, {30}}, {1, {60}}, DataType::kFLOAT}};
}

std::vector<Range> gather_inputs(DataType type) {
  return {{{3, {1, 3, 8}}, {3, {1, 30, 8}}, {3, {2, 60, 8}}, type},
          {{3, {2, 3, 4}}, {3, {3, 4, 5}}, {3, {5, 4, 6}}, DataType::kINT64}};
}

std::vector<Range> inputs_of(const std::string& name, DataType type) {
  return name == kSplit ? split_inputs(type) : gather_inputs(type);
}

void check_attributes(Suite& suite) {
  suite.report.begin("tokens of several GPUs: attributes");
  for (const char* const name : {kSplit, kGather}) {
    auto& creator = suite.library.creator(name, "1", "rainfusion");
    const auto* const names = creator.getFieldNames();
    suite.report.expect(names->nbFields == 1 && std::string(names->fields[0].name) == "axis",
                        "the attribute is axis");
    Fields unknown = axis_of(1);
    unknown.number("parts", int32_t{2});
    Fields text;
    text.text("axis", "1");
    const std::map<std::string, Fields> wrong{{"'axis' is missing", Fields{}},
                                              {"'parts' is unknown", unknown},
                                              {"'axis' must be one integer", text},
                                              {"'axis' is -1", axis_of(-1)},
                                              {"'axis' is 8", axis_of(8)}};
    for (const auto& [words, fields] : wrong) {
      suite.expect_error(!Builder(creator, fields), words, std::string(name) + " with " + words);
    }
  }
  for (const int32_t value : {-1, 2}) {
    const Builder builder(suite.creator(), make_attributes().replace("parallel", value));
    suite.expect_error(!builder, "'parallel' is " + std::to_string(value), "another flag");
  }
}

void check_tokens(Suite& suite) {
  suite.report.begin("tokens of several GPUs: layers");
  for (const char* const name : {kSplit, kGather}) {
    for (const DataType type :
         {DataType::kHALF, DataType::kBF16, DataType::kFLOAT, DataType::kINT64}) {
      auto& creator = suite.library.creator(name, "1", "rainfusion");
      Builder builder(creator, axis_of(1));
      Engine engine;
      const auto inputs = inputs_of(name, type);
      const std::string step = builder.build(inputs, &engine);
      suite.report.expect(step.empty(),
                          std::string(name) + " refused at " + step + suite.library.log().all());
      suite.report.expect(engine.workspace == 0, "no workspace");
      const nvinfer1::DimsExprs& out = builder.output_exprs();
      suite.report.expect(out.nbDims == 3 && out.d[0] == builder.input_exprs(0).d[0] &&
                              out.d[2] == builder.input_exprs(0).d[2],
                          "other axes stay");
      if (name == std::string(kSplit)) {
        suite.report.expect(out.d[1] == builder.input_exprs(1).d[0], "a part is as long as part");
      }
      Context context(creator, engine);
      suite.report.expect(static_cast<bool>(context), "no context");
      suite.report.expect(context.set_shapes({inputs[0].opt, inputs[1].opt}), "shapes refused");
      suite.report.expect(trt_host::saved_fields(context.plugin()) == engine.fields,
                          "an engine keeps the axis");
    }
  }
  Builder gather(suite.library.creator(kGather, "1", "rainfusion"), axis_of(1));
  std::vector<Range> known = gather_inputs(DataType::kHALF);
  known[1] = trt_host::fixed(known[1].opt, known[1].type);
  suite.report.expect(
      gather.infer_shapes(known) && gather.output_exprs().d[1]->getConstantValue() == 3 * 4 * 5,
      "the whole is the grid");
}

void check_wrong_inputs(Suite& suite) {
  suite.report.begin("tokens of several GPUs: wrong inputs");
  for (const char* const name : {kSplit, kGather}) {
    auto& creator = suite.library.creator(name, "1", "rainfusion");
    auto inputs = inputs_of(name, DataType::kHALF);
    Builder outside(creator, axis_of(3));
    suite.expect_error(!outside.infer_shapes(inputs), "with axis 3", "an axis that is not there");
    Builder builder(creator, axis_of(1));
    auto swapped = inputs;
    swapped[1] = trt_host::fixed({2, {3, 4}}, DataType::kFLOAT);
    suite.expect_error(!builder.infer_shapes(swapped), "3 and 2 dimensions", "another rank");
    inputs.pop_back();
    suite.expect_error(!builder.infer_shapes(inputs), "node has 1 inputs", "one input");
  }
}

// A layer of one of several GPUs has fewer tokens than its grid, and all heads.
void check_attention(Suite& suite) {
  suite.report.begin("attention of several GPUs");
  auto* const bound_of = suite.library.symbol<decltype(rainfusion_shared_workspace_bound)>(
      "rainfusion_shared_workspace_bound");
  Size part = kClip;
  const Dims query{4, {part.batch, 6, 200, part.head_size}};
  std::vector<Range> inputs;
  for (const Dims& dims : std::vector<Dims>{query, query, query, part.grid(), {1, {1}}}) {
    inputs.push_back(trt_host::fixed(dims, DataType::kHALF));
  }
  inputs[3].type = DataType::kINT64;
  inputs[4].type = DataType::kFLOAT;
  Builder alone(suite.creator(), make_attributes());
  suite.expect_error(!alone.infer_shapes(inputs), "tokens = 200 is less than",
                     "a part of the tokens on one GPU");

  for (const auto& [method, code] : methods_of(suite.library)) {
    Builder builder(suite.creator(),
                    make_attributes("last", method).replace("parallel", int32_t{1}));
    Engine engine;
    const std::string step = builder.build(inputs, &engine);
    suite.report.expect(step.empty(), "refused at " + step + suite.library.log().all());
    RainfusionProblem largest = part.problem(RAINFUSION_TEXT_LAST, code, RAINFUSION_FLOAT16);
    largest.heads = 6;
    largest.tokens = 200;
    size_t bound = 0;
    suite.report.expect(bound_of(&largest, &bound) == RAINFUSION_SUCCESS, "workspace bound");
    suite.report.expect(engine.workspace == bound + RAINFUSION_WORKSPACE_ALIGNMENT - 1,
                        "the workspace is not that of several GPUs");
    Context context(suite.creator(), engine);
    std::vector<Dims> dims;
    for (const Range& input : inputs) dims.push_back(input.opt);
    suite.report.expect(context.set_shapes(dims), "shapes refused" + suite.library.log().all());
    suite.report.expect(trt_host::saved_fields(context.plugin()) == engine.fields,
                        "an engine keeps that it is of several GPUs");
    // On one GPU alone the part is not the whole; nothing is enqueued before that is noticed.
    std::vector<char> memory(RAINFUSION_WORKSPACE_ALIGNMENT);
    const std::vector<const void*> pointers(inputs.size(), memory.data());
    suite.expect_error(!context.enqueue(pointers, memory.data(), memory.data(), nullptr),
                       "tokens = 200 on GPU 0 of 1, whose part of the 495 video tokens is 495",
                       "a part on one GPU");
  }
}

}  // namespace

void check_parallel(trt_host::PluginLibrary& library, Report& report) {
  run_checks(library, report,
             {check_attributes, check_tokens, check_wrong_inputs, check_attention});
}

}  // namespace conformance
