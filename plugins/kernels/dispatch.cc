// Which kernels run where: one row an architecture.

#include "common/launch.h"
#include "common/variants.h"
#include "sm80/launch.h"
#include "sm90/launch.h"

namespace rainfusion {
namespace {

struct Architecture {
  int first_capability;  // major * 10 + minor
  int last_capability;
  cudaError_t (*attention)(const Geometry&, const AttentionParams&, int, cudaStream_t);
  cudaError_t (*recall)(const RecallParams&, cudaStream_t);
};

// A row with the launchers of namespace `arch`, which are chosen by element type and head size.
#define RAINFUSION_ARCHITECTURE(arch, first_capability, last_capability)                       \
  {first_capability, last_capability,                                                          \
   [](const Geometry& g, const AttentionParams& params, int capability, cudaStream_t stream) { \
     return with_variant(g.dtype, g.head_size, [&](auto element, auto head_size) {             \
       using Element = typename decltype(element)::Type;                                       \
       return arch::launch_attention<Element, head_size()>(params, capability, stream);        \
     });                                                                                       \
   },                                                                                          \
   [](const RecallParams& params, cudaStream_t stream) {                                       \
     const Geometry& g = params.geometry;                                                      \
     return with_variant(g.dtype, g.head_size, [&](auto element, auto head_size) {             \
       using Element = typename decltype(element)::Type;                                       \
       return arch::launch_recall<Element, head_size()>(params, stream);                       \
     });                                                                                       \
   }}

constexpr int kAny = 1000;

// The first row that fits is taken.
constexpr Architecture kArchitectures[] = {
#ifdef RAINFUSION_SM90
    RAINFUSION_ARCHITECTURE(sm90, 90, 90),
#endif
    RAINFUSION_ARCHITECTURE(sm80, 80, kAny),
};
#undef RAINFUSION_ARCHITECTURE

const Architecture* find_architecture(int capability) {
  for (const Architecture& row : kArchitectures) {
    if (row.first_capability <= capability && capability <= row.last_capability) return &row;
  }
  return nullptr;
}

}  // namespace

cudaError_t launch_attention(const Geometry& geometry, const AttentionParams& params,
                             int capability, cudaStream_t stream) {
  const Architecture* found = find_architecture(capability);
  return found != nullptr ? found->attention(geometry, params, capability, stream)
                          : cudaErrorNoKernelImageForDevice;
}

cudaError_t launch_recall(const RecallParams& params, int capability, cudaStream_t stream) {
  const Architecture* found = find_architecture(capability);
  return found != nullptr ? found->recall(params, stream) : cudaErrorNoKernelImageForDevice;
}

}  // namespace rainfusion
