#include "plugin.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "capabilities.h"
#include "logging.h"
#include "problem.h"
#include "rainfusion/parallel.h"
#include "stand_in.h"

namespace rainfusion::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = 1;

// TensorRT cuts layers' workspaces out of a larger one without saying how it aligns them.
constexpr size_t kAlignmentSlack = RAINFUSION_WORKSPACE_ALIGNMENT - 1;

// TensorRT's own words for a type that no format fits do not name the type. A warning, because a
// weakly typed network is offered in float32 too before the builder settles on 16 bits.
bool accepts_query(DataType type) {
  if (type == DataType::kHALF || type == DataType::kBF16) return true;
  log(Severity::kWARNING,
      "RainFusionAttention formats: query is offered as " +
          std::string(type == DataType::kFLOAT ? "float32" : "another type") +
          "; there are kernels for float16 and bfloat16: export the model in one of them");
  return false;
}

Dims known_dims(const DimsExprs& exprs) {
  Dims dims{};
  dims.nbDims = exprs.nbDims;
  for (int32_t i = 0; i < exprs.nbDims; ++i) {
    dims.d[i] = exprs.d[i]->isConstant() ? exprs.d[i]->getConstantValue() : -1;
  }
  return dims;
}

bool is_known(const Dims& dims) {
  return std::all_of(dims.d, dims.d + dims.nbDims, [](int64_t size) { return size >= 0; });
}

// [B, N, S, D] without gaps.
RainfusionStrides dense_strides(const Dims& dims) {
  return {dims.d[1] * dims.d[2] * dims.d[3], dims.d[2] * dims.d[3], dims.d[3]};
}

}  // namespace

Plugin::Plugin(const Attributes& attributes)
    : attributes_(attributes), fields_(attributes), description_(describe(attributes)) {}

Plugin::Plugin(const SavedLayer& layer)
    : attributes_(layer.attributes),
      fields_(attributes_),
      description_(describe(attributes_)),
      is_being_built_(false),
      workspace_(layer.workspace_bytes) {}

Plugin::Plugin(const Plugin& other)
    : attributes_(other.attributes_),
      fields_(attributes_),
      description_(other.description_),
      is_being_built_(other.is_being_built_),
      workspace_(other.workspace_),
      input_count_(other.input_count_),
      precision_(other.precision_) {}

void Plugin::check_problems(const std::vector<Dims>& inputs, DataType type) const {
  for (const RainfusionPrecision precision : precisions_of(attributes_, inputs)) {
    check_problem(make_problem(attributes_, inputs[kQuery], inputs[kGrid], type, precision));
  }
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  return capability_of(this, type);
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded("clone", static_cast<Plugin*>(nullptr), [&] { return new Plugin(*this); });
}

int32_t Plugin::getOutputDataTypes(DataType* output_types, int32_t outputs,
                                   const DataType* input_types, int32_t inputs) const noexcept {
  return guarded("types", kFailure, [&] {
    check_counts(attributes_, inputs, outputs);
    output_types[0] = input_types[kQuery];
    return kSuccess;
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*,
                                int32_t, DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder&) noexcept {
  return guarded("shapes", kFailure, [&] {
    check_counts(attributes_, input_count, output_count);
    std::vector<Dims> dims(static_cast<size_t>(input_count));
    std::transform(inputs, inputs + input_count, dims.begin(), known_dims);
    check_ranks(attributes_, dims);
    check_shapes(attributes_, dims);
    if (!is_parallel() && is_known(dims[kQuery]) && is_known(dims[kGrid])) {
      check_problems(dims, DataType::kHALF);
    } else if (dims[kQuery].d[3] >= 0) {
      check_head_size(attributes_, dims[kQuery].d[3]);
    }
    outputs[0] = inputs[kQuery];
    return kSuccess;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                       int32_t inputs, int32_t outputs) noexcept {
  return guarded("formats", false, [&] {
    check_counts(attributes_, inputs, outputs);
    const Inputs optional(attributes_, inputs);
    const PluginTensorDesc& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (position == kQuery) return accepts_query(tensor.type);
    if (position == kGrid || optional.is_bits(position)) return true;  // values are never read
    if (position == kSparsity) return tensor.type == DataType::kFLOAT;
    if (optional.is_kv_len(position)) return tensor.type == DataType::kINT32;
    return tensor.type == tensors[kQuery].desc.type;
  });
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*, int32_t output_count) noexcept {
  return guarded("configuration", kFailure, [&] {
    check_counts(attributes_, input_count, output_count);
    std::vector<Dims> dims;
    for (int32_t i = 0; i < input_count; ++i) dims.push_back(inputs[i].opt);
    check_ranks(attributes_, dims);
    // The smallest and the largest sizes of a profile need not make a clip; the optimal ones do.
    if (is_known(dims[kQuery]) && is_known(dims[kGrid])) {
      check_shapes(attributes_, dims);
      if (!is_parallel()) check_problems(dims, inputs[kQuery].desc.type);
    }
    // getWorkspaceSize cannot fail, so what would make it fail is reported here.
    if (is_known(inputs[kQuery].max) && is_known(inputs[kGrid].max)) {
      workspace_bound(attributes_, inputs[kQuery].max, inputs[kGrid].max, inputs[kQuery].desc.type);
    }
    input_count_ = input_count;
    return kSuccess;
  });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                                const DynamicPluginTensorDesc*, int32_t) const noexcept {
  return guarded("workspace", size_t{0}, [&] {
    const size_t bytes =
        kAlignmentSlack + workspace_bound(attributes_, inputs[kQuery].max, inputs[kGrid].max,
                                          inputs[kQuery].desc.type);
    workspace_.ask(bytes);
    return bytes;
  });
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count,
                              const PluginTensorDesc*, int32_t output_count) noexcept {
  return guarded("shape change", kFailure, [&] {
    check_counts(attributes_, input_count, output_count);
    std::vector<Dims> dims;
    for (int32_t i = 0; i < input_count; ++i) dims.push_back(inputs[i].dims);
    check_ranks(attributes_, dims);
    check_shapes(attributes_, dims);
    // How many GPUs there are is known in enqueue: a context may be made before they meet.
    if (!is_parallel()) check_problems(dims, inputs[kQuery].type);
    precision_ = precisions_of(attributes_, dims).front();
    input_count_ = input_count;
    return kSuccess;
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  return guarded("enqueue", kFailure, [&] {
    if (input_count_ == 0) throw std::logic_error("called before onShapeChange");
    const PluginTensorDesc& query = input_descs[kQuery];
    const RainfusionProblem problem =
        make_problem(attributes_, query.dims, input_descs[kGrid].dims, query.type, precision_);
    if (is_parallel() && is_being_built_) {
      zero_while_built(query.dims, query.type, outputs[0], stream);
      return kSuccess;
    }
    const RainfusionStrides strides = dense_strides(query.dims);
    RainfusionTensors tensors{};
    tensors.q = inputs[kQuery];
    tensors.k = inputs[kKey];
    tensors.v = inputs[kValue];
    tensors.out = outputs[0];
    tensors.q_strides = tensors.k_strides = tensors.v_strides = tensors.out_strides = strides;
    tensors.sparsity = static_cast<const float*>(inputs[kSparsity]);
    if (Inputs(attributes_, input_count_).has_kv_len()) {
      tensors.kv_len = static_cast<const int32_t*>(inputs[kOptional]);
    }
    // What TensorRT has set aside, not what the library would like: too little is an error there.
    size_t workspace_bytes = workspace_.bytes();
    if (workspace_bytes == 0) throw std::logic_error("called before getWorkspaceSize");
    std::align(RAINFUSION_WORKSPACE_ALIGNMENT, 0, workspace, workspace_bytes);
    const RainfusionStatus status =
        is_parallel()
            ? rainfusion_shared_attention(&problem, &tensors, workspace, workspace_bytes, stream)
            : rainfusion_attention(&problem, &tensors, nullptr, workspace, workspace_bytes, stream);
    if (status == RAINFUSION_WORKSPACE_TOO_SMALL) {
      throw std::runtime_error("the engine has less workspace than this library needs: " +
                               std::string(rainfusion_last_error()) + "; build the engine again");
    }
    check_status(status);
    return kSuccess;
  });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return guarded("context", static_cast<nvinfer1::IPluginV3*>(nullptr), [&] {
    check_current_device(attributes_);
    return clone();
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return guarded("saving", static_cast<const nvinfer1::PluginFieldCollection*>(nullptr), [&] {
    const size_t bytes = workspace_.bytes();
    if (bytes == 0) {
      log(Severity::kWARNING,
          "RainFusionAttention saving: TensorRT has not asked for the layer's workspace; an engine "
          "that is saved like this will be refused");
    }
    return fields_.collection(bytes);
  });
}

}  // namespace rainfusion::tensorrt
