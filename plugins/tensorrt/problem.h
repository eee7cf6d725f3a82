// From TensorRT's tensor descriptions to the kernels' problem, with all checks of shapes.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "attributes.h"
#include "rainfusion/rainfusion.h"

namespace rainfusion::tensorrt {

enum Input : int32_t { kQuery, kKey, kValue, kGrid, kSparsity, kKvLen };
constexpr int32_t kMinInputs = kSparsity + 1;
constexpr int32_t kMaxInputs = kKvLen + 1;

// Throws std::invalid_argument unless there are five or six inputs and one output.
void check_counts(int32_t inputs, int32_t outputs);

// Throws unless every input has its rank. Sizes of -1 (not known yet) pass.
void check_ranks(const std::vector<nvinfer1::Dims>& inputs);

// Throws unless key and value are shaped as query, sparsity is [1] and kv_len is [B].
void check_shapes(const std::vector<nvinfer1::Dims>& inputs);

// The problem of inputs whose sizes are all known. Checks nothing but that they fit 32 bits.
RainfusionProblem make_problem(const Attributes& attributes, const nvinfer1::Dims& query,
                               const nvinfer1::Dims& grid, nvinfer1::DataType type);

// Throws with the library's own words if no kernel can run the problem.
void check_problem(const RainfusionProblem& problem);

// The same of a head size alone, which is known long before the other sizes are.
void check_head_size(int64_t head_size);

// Throws if the current GPU has no kernel. Passes where there is no GPU at all, since engines can
// be built on such machines.
void check_current_device();

// Throws with the library's last words unless the call succeeded.
void check_status(RainfusionStatus status);

// Workspace for every problem of a profile: its largest sizes need not make a clip. With
// `parallel` its tokens are those of one of any number of GPUs.
size_t workspace_bound(const RainfusionProblem& largest, bool parallel);

}  // namespace rainfusion::tensorrt
