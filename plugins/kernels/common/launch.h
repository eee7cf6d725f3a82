// Launchers of all kernels. Each enqueues on `stream` and returns what the launch returned.
#pragma once

#include <cuda_runtime_api.h>

#include "common/params.h"

namespace rainfusion {

// Block masks of spatial and temporal heads.
cudaError_t launch_prepare(const Geometry& geometry, const RainfusionTensors& tensors,
                           const Workspace& workspace, cudaStream_t stream);

struct RecallParams {
  const void* q;
  const void* k;
  RainfusionStrides q_strides;
  RainfusionStrides k_strides;
  const float* sparsity;
  const int32_t* kv_len;
  float* partial_recall;
  Geometry geometry;
};

// ARM's recalls, as partial sums, through the kernel of a compute capability (major * 10 + minor).
cudaError_t launch_recall(const RecallParams& params, RainfusionDtype dtype, int capability,
                          cudaStream_t stream);

// Every head's kind and block mask, from the recalls.
cudaError_t launch_decide(const Geometry& geometry, const RainfusionTensors& tensors,
                          const Workspace& workspace, const RainfusionPlan& plan,
                          cudaStream_t stream);

// rainfusion2: means of query and key blocks, then each query block's best key blocks.
cudaError_t launch_block_means(const Geometry& geometry, const RainfusionTensors& tensors,
                               const Workspace& workspace, RainfusionDtype dtype,
                               cudaStream_t stream);
cudaError_t launch_select_blocks(const Geometry& geometry, const RainfusionTensors& tensors,
                                 const Workspace& workspace, cudaStream_t stream);

// Copies the checkerboard keys and values of textural heads together.
cudaError_t launch_gather(const Geometry& geometry, const RainfusionTensors& tensors,
                          const Workspace& workspace, cudaStream_t stream);

// Density and block masks for callers that ask.
cudaError_t launch_export_plan(const Geometry& geometry, const RainfusionTensors& tensors,
                               const Workspace& workspace, const RainfusionPlan& plan,
                               cudaStream_t stream);

struct AttentionParams {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  RainfusionStrides q_strides;
  RainfusionStrides k_strides;
  RainfusionStrides v_strides;
  RainfusionStrides out_strides;
  float* lse;
  BlockCut q_cut;
  BlockCut k_cut;
  int32_t batch;
  int32_t heads;
  float softmax_scale;
  const int32_t* kv_len;
  const int32_t* kind;
  const int32_t* mask_index;
  const uint32_t* masks;
  int32_t mask_words;
  int32_t free_begin;  // tokens [free_begin, free_end) are no sinks
  int32_t free_end;
  const void* gathered_k;  // null where no head can be textural
  const void* gathered_v;
  int32_t gathered_rows;
  const int32_t* gathered_count;
  int32_t* next_item;  // 0 before the launch
};

// Picks the attention kernel of a compute capability (major * 10 + minor).
cudaError_t launch_attention(const AttentionParams& params, RainfusionDtype dtype, int head_size,
                             int capability, cudaStream_t stream);

// For sm_80 and newer.
template <typename Element>
cudaError_t launch_recall_sm80(const RecallParams& params, cudaStream_t stream);

// For sm_90a, where the library was built for it.
template <typename Element>
cudaError_t launch_recall_sm90(const RecallParams& params, cudaStream_t stream);

// For sm_80 and newer; one head size and dtype a source file. Two stages are faster where two CTAs
// still fit on a multiprocessor.
template <typename Element, int kHeadSize, int kStages>
cudaError_t launch_attention_sm80(const AttentionParams& params, cudaStream_t stream);

// For sm_90a, where the library was built for it; one head size and dtype a source file.
template <typename Element, int kHeadSize>
cudaError_t launch_attention_sm90(const AttentionParams& params, cudaStream_t stream);

}  // namespace rainfusion
