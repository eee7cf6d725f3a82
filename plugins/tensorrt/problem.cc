#include "problem.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>

#include "rainfusion/parallel.h"

namespace rainfusion::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr std::array<const char*, kOptional> kNames{"query", "key", "value", "grid", "sparsity"};
constexpr std::array<int32_t, kOptional> kRanks{4, 4, 4, 3, 1};
constexpr int64_t kBits8 = 8;
constexpr int64_t kBits16 = 16;

int32_t rank_of(size_t input) { return input < kRanks.size() ? kRanks[input] : 1; }

std::string name_of(const Inputs& inputs, size_t input) {
  if (input < kNames.size()) return kNames[input];
  return inputs.is_bits(static_cast<int32_t>(input)) ? "bits" : "kv_len";
}

std::string shape_of(const Dims& dims) {
  std::string text = "[";
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
  }
  return text + "]";
}

bool may_be_equal(int64_t a, int64_t b) { return a == b || a < 0 || b < 0; }

bool may_be_equal(const Dims& a, const Dims& b) {
  return a.nbDims == b.nbDims && std::equal(a.d, a.d + a.nbDims, b.d, [](int64_t x, int64_t y) {
           return may_be_equal(x, y);
         });
}

int32_t to_int32(int64_t size) {
  if (size < 0 || size > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("size " + std::to_string(size) + " is out of range");
  }
  return static_cast<int32_t>(size);
}

// Calls a check of the library and throws its words if it fails.
template <typename Error, typename Check, typename... Arguments>
void run_check(Check* check, Arguments... arguments) {
  std::array<char, 1024> message{};
  if (check(arguments..., message.data(), message.size()) != RAINFUSION_SUCCESS) {
    throw Error(message.data());
  }
}

}  // namespace

void check_counts(const Attributes& attributes, int32_t inputs, int32_t outputs) {
  const int32_t least = Inputs(attributes, inputs).least();
  if (inputs < least || inputs > least + 1 || outputs != 1) {
    throw std::invalid_argument(
        "node has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
        " outputs; it takes query, key, value, grid, sparsity" +
        (attributes.eight_bit() ? ", optionally kv_len, and bits" : " and optionally kv_len") +
        ", and has one output");
  }
}

void check_ranks(const Attributes& attributes, const std::vector<Dims>& inputs) {
  const Inputs optional(attributes, static_cast<int32_t>(inputs.size()));
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].nbDims != rank_of(i)) {
      throw std::invalid_argument(name_of(optional, i) + " has shape " + shape_of(inputs[i]) +
                                  "; it must have " + std::to_string(rank_of(i)) + " dimensions");
    }
  }
}

void check_shapes(const Attributes& attributes, const std::vector<Dims>& inputs) {
  const Inputs optional(attributes, static_cast<int32_t>(inputs.size()));
  for (int32_t input : {kKey, kValue}) {
    if (!may_be_equal(inputs[input], inputs[kQuery])) {
      throw std::invalid_argument(std::string(kNames[input]) + " has shape " +
                                  shape_of(inputs[input]) + ", query " + shape_of(inputs[kQuery]) +
                                  "; they must be equal");
    }
  }
  if (!may_be_equal(inputs[kSparsity].d[0], 1)) {
    throw std::invalid_argument("sparsity has shape " + shape_of(inputs[kSparsity]) +
                                "; it must be one number, [1]");
  }
  if (optional.has_kv_len() && !may_be_equal(inputs[kOptional].d[0], inputs[kQuery].d[0])) {
    throw std::invalid_argument("kv_len has shape " + shape_of(inputs[kOptional]) + ", query " +
                                shape_of(inputs[kQuery]) +
                                "; kv_len must hold one number for each batch element");
  }
  if (attributes.eight_bit() && !may_be_equal(inputs.back().d[0], kBits8) &&
      !may_be_equal(inputs.back().d[0], kBits16)) {
    throw std::invalid_argument("bits has shape " + shape_of(inputs.back()) +
                                "; its length is the precision of a call, [8] or [16]");
  }
}

std::vector<RainfusionPrecision> precisions_of(const Attributes& attributes,
                                               const std::vector<Dims>& inputs) {
  if (!attributes.eight_bit()) return {RAINFUSION_PRECISION_16BIT};
  const int64_t bits = inputs.back().d[0];
  if (bits == kBits8) return {RAINFUSION_PRECISION_8BIT};
  if (bits == kBits16) return {RAINFUSION_PRECISION_16BIT};
  return {RAINFUSION_PRECISION_16BIT, RAINFUSION_PRECISION_8BIT};
}

RainfusionProblem make_problem(const Attributes& attributes, const Dims& query, const Dims& grid,
                               DataType type, RainfusionPrecision precision) {
  RainfusionProblem problem{};
  problem.batch = to_int32(query.d[0]);
  problem.heads = to_int32(query.d[1]);
  problem.tokens = to_int32(query.d[2]);
  problem.head_size = to_int32(query.d[3]);
  problem.grid_t = to_int32(grid.d[0]);
  problem.grid_h = to_int32(grid.d[1]);
  problem.grid_w = to_int32(grid.d[2]);
  problem.sink_frames = attributes.sink_frames;
  problem.alpha = attributes.alpha;
  problem.softmax_scale = attributes.scale;
  problem.text = attributes.text;
  problem.method = attributes.method;
  problem.dtype = type == DataType::kBF16 ? RAINFUSION_BFLOAT16 : RAINFUSION_FLOAT16;
  problem.precision = precision;
  problem.last_sink_frames = attributes.last_sink_frames;
  for (size_t i = 0; i < attributes.exact_frames.size() / 2; ++i) {
    problem.exact_frames[i] = {attributes.exact_frames[2 * i], attributes.exact_frames[2 * i + 1]};
  }
  return problem;
}

void check_problem(const RainfusionProblem& problem) {
  run_check<std::invalid_argument>(rainfusion_check, &problem);
}

void check_head_size(const Attributes& attributes, int64_t head_size) {
  run_check<std::invalid_argument>(rainfusion_check_head_size, to_int32(head_size));
  if (!attributes.eight_bit()) return;
  // Of a token alone, which says all that 8 bits ask of a layer before its sizes are known. Its one
  // frame is not the clip's, which are asked for their exact ones with the sizes.
  Attributes of_token = attributes;
  of_token.exact_frames.clear();
  check_problem(make_problem(of_token, {4, {1, 1, 1, head_size}}, {3, {1, 1, 1}}, DataType::kHALF,
                             RAINFUSION_PRECISION_8BIT));
}

void check_current_device(const Attributes& attributes) {
  int device = 0;
  int major = 0;
  int minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // no GPU here; do not leave the error to others
    return;
  }
  run_check<std::runtime_error>(rainfusion_check_device, major, minor);
  run_check<std::runtime_error>(rainfusion_check_precision, attributes.precision, major, minor);
}

void check_status(RainfusionStatus status) {
  if (status == RAINFUSION_SUCCESS) return;
  const std::string detail = rainfusion_last_error();
  throw std::runtime_error(detail.empty() ? rainfusion_status_string(status) : detail);
}

size_t workspace_bound(const Attributes& attributes, const Dims& query, const Dims& grid,
                       DataType type) {
  const auto bound =
      attributes.parallel != 0 ? rainfusion_shared_workspace_bound : rainfusion_workspace_bound;
  size_t most = 0;
  for (const RainfusionPrecision precision : {RAINFUSION_PRECISION_16BIT, attributes.precision}) {
    const RainfusionProblem largest = make_problem(attributes, query, grid, type, precision);
    size_t bytes = 0;
    check_status(bound(&largest, &bytes));
    most = std::max(most, bytes);
  }
  return most;
}

}  // namespace rainfusion::tensorrt
