// Checkerboard keys and values of textural heads, copied together once a call.
//
// All query blocks of such a head attend to the same keys, which lie a stride apart. Read from one
// run they come through the copy engine in whole tiles, as the blocks of other heads do.

#include <cuda_runtime.h>

#include "common/element.h"
#include "common/launch.h"

namespace rainfusion {
namespace {

constexpr int kGatherThreads = 256;
constexpr int kGatherRows = 64;  // of a CTA

struct GatherParams {
  const void* source[2];  // k, v
  RainfusionStrides strides[2];
  void* gathered[2];
  const int32_t* kind;
  const float* sparsity;
  const int32_t* count;  // [batch] rows that are attended to
  int32_t rows;          // of a head
  Geometry geometry;
};

template <int kElementBytes>
__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(const __grid_constant__ GatherParams p) {
  __shared__ int32_t tokens[kGatherRows];
  const Geometry& g = p.geometry;
  const int batch_head = blockIdx.y;
  if (p.kind[batch_head] != RAINFUSION_KIND_TEXTURAL) return;
  const int64_t stride = stride_of(clamp_sparsity(*p.sparsity));
  const int first = blockIdx.x * kGatherRows;
  const int rows = min(kGatherRows, p.count[batch_head / g.heads] - first);
  if (rows <= 0) return;
  if (threadIdx.x < rows) {
    const int64_t raster = checkerboard_raster(g.layout, stride, first + threadIdx.x);
    tokens[threadIdx.x] = static_cast<int32_t>(g.layout.free_begin() + raster);
  }
  __syncthreads();
  const int chunks = g.head_size / (kChunkBytes / kElementBytes);  // in a row
  const int64_t row = static_cast<int64_t>(batch_head) * p.rows + first;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const RainfusionStrides& strides = p.strides[which];
    const char* source = static_cast<const char*>(p.source[which]) +
                         kElementBytes * (batch_head / g.heads * strides.batch +
                                          batch_head % g.heads * strides.head);
    uint4* gathered = static_cast<uint4*>(p.gathered[which]) + row * chunks;
    for (int i = threadIdx.x; i < rows * chunks; i += kGatherThreads) {
      const char* from =
          source + kElementBytes * tokens[i / chunks] * strides.token + i % chunks * kChunkBytes;
      gathered[i] = __ldg(reinterpret_cast<const uint4*>(from));
    }
  }
}

}  // namespace

cudaError_t launch_gather(const Geometry& geometry, const RainfusionTensors& tensors,
                          const Workspace& workspace, cudaStream_t stream) {
  const int32_t rows = geometry.gathered_rows();
  if (rows == 0) return cudaSuccess;
  const GatherParams params{{tensors.k, tensors.v},
                            {tensors.k_strides, tensors.v_strides},
                            {workspace.gathered_k, workspace.gathered_v},
                            workspace.kind,
                            tensors.sparsity,
                            workspace.gathered_count,
                            rows,
                            geometry};
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, kGatherRows)), geometry.batch_heads());
  return with_element(geometry.dtype, cudaErrorInvalidValue, [&](auto element) {
    constexpr int kElementBytes = ElementTraits<typename decltype(element)::Type>::kBytes;
    gather_kernel<kElementBytes><<<grid, kGatherThreads, 0, stream>>>(params);
    return cudaGetLastError();
  });
}

}  // namespace rainfusion
