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

constexpr std::array<const char*, kMaxInputs> kNames{"query", "key",      "value",
                                                     "grid",  "sparsity", "kv_len"};
constexpr std::array<int32_t, kMaxInputs> kRanks{4, 4, 4, 3, 1, 1};

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

void check_counts(int32_t inputs, int32_t outputs) {
  if (inputs < kMinInputs || inputs > kMaxInputs || outputs != 1) {
    throw std::invalid_argument("node has " + std::to_string(inputs) + " inputs and " +
                                std::to_string(outputs) +
                                " outputs; it takes query, key, value, grid, sparsity and "
                                "optionally kv_len, and has one output");
  }
}

void check_ranks(const std::vector<Dims>& inputs) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].nbDims != kRanks[i]) {
      throw std::invalid_argument(std::string(kNames[i]) + " has shape " + shape_of(inputs[i]) +
                                  "; it must have " + std::to_string(kRanks[i]) + " dimensions");
    }
  }
}

void check_shapes(const std::vector<Dims>& inputs) {
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
  if (inputs.size() > kKvLen && !may_be_equal(inputs[kKvLen].d[0], inputs[kQuery].d[0])) {
    throw std::invalid_argument("kv_len has shape " + shape_of(inputs[kKvLen]) + ", query " +
                                shape_of(inputs[kQuery]) +
                                "; kv_len must hold one number for each batch element");
  }
}

RainfusionProblem make_problem(const Attributes& attributes, const Dims& query, const Dims& grid,
                               DataType type) {
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
  return problem;
}

void check_problem(const RainfusionProblem& problem) {
  run_check<std::invalid_argument>(rainfusion_check, &problem);
}

void check_head_size(int64_t head_size) {
  run_check<std::invalid_argument>(rainfusion_check_head_size, to_int32(head_size));
}

void check_current_device() {
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
}

void check_status(RainfusionStatus status) {
  if (status == RAINFUSION_SUCCESS) return;
  const std::string detail = rainfusion_last_error();
  throw std::runtime_error(detail.empty() ? rainfusion_status_string(status) : detail);
}

size_t workspace_bound(const RainfusionProblem& largest, bool parallel) {
  size_t bytes = 0;
  check_status(parallel ? rainfusion_shared_workspace_bound(&largest, &bytes)
                        : rainfusion_workspace_bound(&largest, &bytes));
  return bytes;
}

}  // namespace rainfusion::tensorrt
