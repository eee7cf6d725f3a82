// The C interface: checks, the workspace and the order of the launches.

#include <cuda_runtime_api.h>

#include <string>

#include "boundary.h"
#include "common/device.h"
#include "common/launch.h"
#include "validate.h"
#include "workspace.h"

#ifndef RAINFUSION_VERSION
#define RAINFUSION_VERSION "unknown"
#endif
#ifndef RAINFUSION_SOURCE_HASH
#define RAINFUSION_SOURCE_HASH "unknown"
#endif
#ifndef RAINFUSION_GPU_TARGETS
#define RAINFUSION_GPU_TARGETS "unknown"
#endif

namespace rainfusion {

std::string& last_error() {
  static thread_local std::string message;
  return message;
}

namespace {

Result check_problem(const RainfusionProblem* problem) {
  return problem != nullptr ? validate_problem(*problem) : invalid("problem is a null pointer");
}

Result check_workspace(const Geometry& geometry, void* workspace, size_t bytes, Workspace* parts) {
  const size_t needed = lay_out_workspace(geometry, workspace, parts);
  if (bytes < needed) {
    return {RAINFUSION_WORKSPACE_TOO_SMALL,
            "the workspace has " + std::to_string(bytes) + " bytes, " + std::to_string(needed) +
                " are needed; ask rainfusion_workspace_size for this problem"};
  }
  if (workspace == nullptr) return invalid("workspace is a null pointer");
  if (reinterpret_cast<uintptr_t>(workspace) % RAINFUSION_WORKSPACE_ALIGNMENT != 0) {
    return invalid("the workspace is not aligned to " +
                   std::to_string(RAINFUSION_WORKSPACE_ALIGNMENT) + " bytes");
  }
  return {};
}

AttentionParams attention_params(const Geometry& geometry, const RainfusionTensors& tensors,
                                 const Workspace& workspace) {
  return AttentionParams{tensors.q,
                         tensors.k,
                         tensors.v,
                         tensors.out,
                         tensors.q_strides,
                         tensors.k_strides,
                         tensors.v_strides,
                         tensors.out_strides,
                         tensors.lse,
                         geometry.q_cut,
                         geometry.k_cut,
                         geometry.batch,
                         geometry.heads,
                         geometry.softmax_scale,
                         tensors.kv_len,
                         workspace.kind,
                         workspace.mask_index,
                         workspace.masks,
                         geometry.mask_words,
                         static_cast<int32_t>(geometry.layout.free_begin()),
                         static_cast<int32_t>(geometry.layout.free_end()),
                         workspace.gathered_k,
                         workspace.gathered_v,
                         geometry.gathered_rows(),
                         workspace.gathered_count,
                         workspace.next_item,
                         geometry.q_windows,
                         geometry.k_windows,
                         workspace.pseudo_bias};
}

// The attention itself, in the precision that the problem asks for.
Result attend(const Geometry& geometry, const RainfusionTensors& tensors, const Workspace& parts,
              int capability, cudaStream_t stream) {
  const AttentionParams attention = attention_params(geometry, tensors, parts);
  if (!geometry.eight_bit) {
    return cuda_result(launch_attention(geometry, attention, capability, stream),
                       "launching the attention");
  }
  const cudaError_t error = launch_eight_bit_tiles(geometry, tensors, parts, stream);
  if (error != cudaSuccess) return cuda_result(error, "launching the rounding to 8 bits");
  const EightBitParams params{attention, parts.eight_bit, geometry.q_tiles(), geometry.k_tiles()};
  return cuda_result(launch_eight_bit_attention(geometry, params, capability, stream),
                     "launching the 8-bit attention");
}

// Of this build, on any GPU.
Result check_precision(bool eight_bit, int major, int minor) {
  if (!eight_bit) return {};
  if (!has_eight_bit_attention(major * 10 + minor)) {
    return unsupported("precision 8bit has no kernel for compute capability " +
                       std::to_string(major) + "." + std::to_string(minor) +
                       "; it needs 8.9 or newer, use precision 16bit");
  }
  return check_capability(major, minor);
}

// ARM, or the choice of blocks, up to the heads' kinds and masks.
Result plan_heads(const Geometry& geometry, const RainfusionTensors& tensors,
                  const RainfusionPlan& plan, const Workspace& workspace, int capability,
                  cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (geometry.always_dense()) {
    // Nothing to classify: the heads' kinds alone are written below.
  } else if (geometry.method.by_windows()) {
    error = launch_window_means(geometry, tensors, workspace, stream);
    if (error != cudaSuccess) return cuda_result(error, "launching the window means");
    error = launch_select_windows(geometry, tensors, workspace, stream);
    if (error != cudaSuccess) return cuda_result(error, "launching the choice of windows");
  } else if (geometry.method.by_blocks()) {
    error = launch_block_means(geometry, tensors, workspace, stream);
    if (error != cudaSuccess) return cuda_result(error, "launching the block means");
    error = launch_select_blocks(geometry, tensors, workspace, stream);
    if (error != cudaSuccess) return cuda_result(error, "launching the choice of blocks");
  } else {
    error = launch_band_masks(geometry, tensors, workspace, stream);
    if (error != cudaSuccess) return cuda_result(error, "launching the block masks");
    const RecallParams recall{
        tensors.q,        tensors.k,      tensors.q_strides,        tensors.k_strides,
        tensors.sparsity, tensors.kv_len, workspace.partial_recall, geometry};
    error = launch_recall(recall, capability, stream);
    if (error != cudaSuccess) return cuda_result(error, "launching the recalls");
  }
  error = launch_decide(geometry, tensors, workspace, plan, stream);
  if (error != cudaSuccess) return cuda_result(error, "launching the decision");
  const AttentionParams attention = attention_params(geometry, tensors, workspace);
  return cuda_result(launch_report(attention, plan, stream), "launching the report of the plan");
}

Result run(const RainfusionProblem* problem, const RainfusionTensors* tensors,
           const RainfusionPlan* plan, void* workspace, size_t workspace_bytes, cudaStream_t stream,
           bool attention) {
  Result result = check_problem(problem);
  if (!result.ok()) return result;
  if (tensors == nullptr) return invalid("tensors is a null pointer");
  result = validate_tensors(*problem, *tensors, attention);
  if (!result.ok()) return result;
  const Geometry geometry(*problem);
  RainfusionTensors used = *tensors;
  if (!attention) used.v = used.out = nullptr;  // not checked, and not read
  Workspace parts{};
  result = check_workspace(geometry, workspace, workspace_bytes, &parts);
  if (!result.ok()) return result;
  int capability = 0;
  result = device_capability(&capability);
  if (result.ok()) result = check_precision(geometry.eight_bit, capability / 10, capability % 10);
  if (!result.ok()) return result;

  result = plan_heads(geometry, used, plan != nullptr ? *plan : RainfusionPlan{}, parts, capability,
                      stream);
  if (result.ok() && attention && geometry.method.textural) {
    result = cuda_result(launch_gather(geometry, used, parts, stream), "launching the gather");
  }
  if (result.ok() && attention) result = attend(geometry, used, parts, capability, stream);
  return explain_launch(result, capability);
}

Result block_mask(const RainfusionProblem* problem, RainfusionKind kind, float sparsity,
                  uint8_t* mask) {
  Result result = check_problem(problem);
  if (!result.ok()) return result;
  if (mask == nullptr) return invalid("mask is a null pointer");
  if (kind < RAINFUSION_KIND_DENSE || kind > RAINFUSION_KIND_TEMPORAL) {
    return invalid("kind = " + std::to_string(kind) +
                   " has no block rule; ask for dense (0), spatial (1) or temporal (2)");
  }
  const Geometry geometry(*problem);
  if (geometry.method.by_windows()) {
    return invalid("method = " + std::to_string(problem->method) + " (" +
                   kMethods[problem->method].name +
                   ") cuts the tokens into windows, for which there is no block rule; ask with "
                   "another method");
  }
  const TokenLayout& layout = geometry.layout;
  const bool dense = kind == RAINFUSION_KIND_DENSE || !(sparsity > 0.f) || geometry.always_dense();
  const int64_t band = dense ? 0 : band_of(clamp_sparsity(sparsity));
  const Axis axis = kind == RAINFUSION_KIND_SPATIAL ? kSpatial : kTemporal;
  for (int32_t q = 0; q < geometry.q_cut.blocks; ++q) {
    for (int32_t k = 0; k < geometry.k_cut.blocks; ++k) {
      const bool kept =
          dense || keeps_block(layout, geometry.q_cut, geometry.k_cut, axis, band, q, k);
      *mask++ = kept ? 1 : 0;
    }
  }
  return {};
}

}  // namespace
}  // namespace rainfusion

using namespace rainfusion;

int32_t rainfusion_abi_version(void) { return RAINFUSION_ABI_VERSION; }

const char* rainfusion_method_name(RainfusionMethod method) {
  return method >= 0 && method < kMethodCount ? kMethods[method].name : nullptr;
}

int32_t rainfusion_workspace_layout(void) { return RAINFUSION_WORKSPACE_LAYOUT; }

const char* rainfusion_build_info(void) {
  return RAINFUSION_VERSION "+" RAINFUSION_SOURCE_HASH " " RAINFUSION_GPU_TARGETS;
}

RainfusionStatus rainfusion_check(const RainfusionProblem* problem, char* message,
                                  size_t capacity) {
  return guarded([&] { return check_problem(problem); }, message, capacity);
}

RainfusionStatus rainfusion_check_head_size(int32_t head_size, char* message, size_t capacity) {
  return guarded([&] { return validate_head_size(head_size); }, message, capacity);
}

RainfusionStatus rainfusion_check_device(int32_t major, int32_t minor, char* message,
                                         size_t capacity) {
  return guarded([&] { return check_capability(major, minor); }, message, capacity);
}

RainfusionStatus rainfusion_check_precision(RainfusionPrecision precision, int32_t major,
                                            int32_t minor, char* message, size_t capacity) {
  return guarded(
      [&] { return check_precision(precision == RAINFUSION_PRECISION_8BIT, major, minor); },
      message, capacity);
}

RainfusionStatus rainfusion_block_counts(const RainfusionProblem* problem, int32_t* q_blocks,
                                         int32_t* k_blocks) {
  return guarded([&] {
    Result result = check_problem(problem);
    if (!result.ok()) return result;
    if (q_blocks == nullptr || k_blocks == nullptr) return invalid("a count is a null pointer");
    const Geometry geometry(*problem);
    *q_blocks = geometry.q_blocks();
    *k_blocks = geometry.k_blocks();
    return result;
  });
}

RainfusionStatus rainfusion_workspace_size(const RainfusionProblem* problem, size_t* bytes) {
  return guarded([&] {
    Result result = check_problem(problem);
    if (!result.ok()) return result;
    if (bytes == nullptr) return invalid("bytes is a null pointer");
    *bytes = lay_out_workspace(Geometry(*problem), nullptr, nullptr);
    return result;
  });
}

RainfusionStatus rainfusion_workspace_bound(const RainfusionProblem* largest, size_t* bytes) {
  return guarded([&] {
    if (largest == nullptr) return invalid("largest is a null pointer");
    if (bytes == nullptr) return invalid("bytes is a null pointer");
    return bound_workspace(*largest, bytes);
  });
}

RainfusionStatus rainfusion_block_mask_host(const RainfusionProblem* problem, RainfusionKind kind,
                                            float sparsity, uint8_t* mask) {
  return guarded([&] { return block_mask(problem, kind, sparsity, mask); });
}

RainfusionStatus rainfusion_classify(const RainfusionProblem* problem,
                                     const RainfusionTensors* tensors, const RainfusionPlan* plan,
                                     void* workspace, size_t workspace_bytes,
                                     RainfusionStream stream) {
  return guarded(
      [&] { return run(problem, tensors, plan, workspace, workspace_bytes, stream, false); });
}

RainfusionStatus rainfusion_attention(const RainfusionProblem* problem,
                                      const RainfusionTensors* tensors, const RainfusionPlan* plan,
                                      void* workspace, size_t workspace_bytes,
                                      RainfusionStream stream) {
  return guarded(
      [&] { return run(problem, tensors, plan, workspace, workspace_bytes, stream, true); });
}

const char* rainfusion_status_string(RainfusionStatus status) {
  switch (status) {
    case RAINFUSION_SUCCESS:
      return "success";
    case RAINFUSION_INVALID_ARGUMENT:
      return "invalid argument";
    case RAINFUSION_UNSUPPORTED:
      return "not supported by the kernels of this library";
    case RAINFUSION_WORKSPACE_TOO_SMALL:
      return "workspace too small";
    case RAINFUSION_CUDA_ERROR:
      return "CUDA error";
    case RAINFUSION_COMMUNICATION_ERROR:
      return "another GPU of the run, or NCCL, failed";
  }
  return "unknown status";
}

const char* rainfusion_last_error(void) { return last_error().c_str(); }
