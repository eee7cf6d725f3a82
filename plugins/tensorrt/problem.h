// From TensorRT's tensor descriptions to the kernels' problem, with all checks of shapes.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "attributes.h"
#include "rainfusion/rainfusion.h"

namespace rainfusion::tensorrt {

enum Input : int32_t { kQuery, kKey, kValue, kGrid, kSparsity, kOptional };

// Where the optional inputs of a layer are, and how many it has in all. `bits` is the last one of a
// layer of 8 bits, which always has it.
struct Inputs {
  bool eight_bit;
  int32_t count;

  Inputs(const Attributes& attributes, int32_t inputs)
      : eight_bit(attributes.eight_bit()), count(inputs) {}

  int32_t least() const { return kOptional + (eight_bit ? 1 : 0); }
  bool has_kv_len() const { return count > least(); }
  bool is_kv_len(int32_t input) const { return has_kv_len() && input == kOptional; }
  bool is_bits(int32_t input) const { return eight_bit && input == count - 1; }
};

// Throws std::invalid_argument unless there are the inputs that have to be there, with kv_len or
// without, and one output.
void check_counts(const Attributes& attributes, int32_t inputs, int32_t outputs);

// Throws unless every input has its rank. Sizes of -1 (not known yet) pass.
void check_ranks(const Attributes& attributes, const std::vector<nvinfer1::Dims>& inputs);

// Throws unless key and value are shaped as query, sparsity is [1], kv_len is [B], and bits is [8]
// or [16].
void check_shapes(const Attributes& attributes, const std::vector<nvinfer1::Dims>& inputs);

// In which precisions a layer may compute: the one that `bits` says, both while it is not known.
std::vector<RainfusionPrecision> precisions_of(const Attributes& attributes,
                                               const std::vector<nvinfer1::Dims>& inputs);

// The problem of inputs whose sizes are all known. Checks nothing but that they fit 32 bits.
RainfusionProblem make_problem(const Attributes& attributes, const nvinfer1::Dims& query,
                               const nvinfer1::Dims& grid, nvinfer1::DataType type,
                               RainfusionPrecision precision);

// Throws with the library's own words if no kernel can run the problem.
void check_problem(const RainfusionProblem& problem);

// The same of a head size alone, which is known long before the other sizes are.
void check_head_size(const Attributes& attributes, int64_t head_size);

// Throws if the current GPU has no kernel. Passes where there is no GPU at all, since engines can
// be built on such machines.
void check_current_device(const Attributes& attributes);

// Throws with the library's last words unless the call succeeded.
void check_status(RainfusionStatus status);

// Workspace for every problem of a profile, in every precision of the layer: its largest sizes need
// not make a clip. Of a layer for several GPUs its tokens are those of one of any number of them.
size_t workspace_bound(const Attributes& attributes, const nvinfer1::Dims& query,
                       const nvinfer1::Dims& grid, nvinfer1::DataType type);

}  // namespace rainfusion::tensorrt
