// Which kernels run where: one row an architecture.

#include "common/launch.h"
#include "common/variants.h"
#include "sm80/launch.h"
#include "sm89/launch.h"
#include "sm90/eight_bit/launch.h"
#include "sm90/launch.h"

namespace rainfusion {
namespace {

struct Architecture {
  int first_capability;  // major * 10 + minor
  int last_capability;
  bool (*runs)(int head_size, const BlockShape& blocks);
  cudaError_t (*attention)(const Geometry&, const AttentionParams&, int, cudaStream_t);
  cudaError_t (*recall)(const RecallParams&, cudaStream_t);
};

// A row with the launchers of namespace `arch`, which are chosen by element type and head size.
#define RAINFUSION_ARCHITECTURE(arch, first_capability, last_capability)                       \
  {first_capability, last_capability, arch::runs,                                              \
   [](const Geometry& g, const AttentionParams& params, int capability, cudaStream_t stream) { \
     return with_variant(g.dtype, g.head_size, [&](auto element, auto head_size) {             \
       using Element = typename decltype(element)::Type;                                       \
       return g.method.by_windows()                                                            \
                  ? arch::launch_window_attention<Element, head_size()>(params, capability,    \
                                                                        stream)                \
                  : arch::launch_attention<Element, head_size()>(params, capability, stream);  \
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

bool covers(const Architecture& row, int capability) {
  return row.first_capability <= capability && capability <= row.last_capability;
}

}  // namespace

// A shape that the kernel of the architecture does not compute goes to a later row: the portable
// kernel computes every shape that a problem may ask for (validate.cc).
cudaError_t launch_attention(const Geometry& geometry, const AttentionParams& params,
                             int capability, cudaStream_t stream) {
  const BlockShape blocks{geometry.q_cut.size, geometry.k_cut.size};
  for (const Architecture& row : kArchitectures) {
    if (covers(row, capability) && row.runs(geometry.head_size, blocks)) {
      return row.attention(geometry, params, capability, stream);
    }
  }
  return cudaErrorNoKernelImageForDevice;
}

// Of GPUs that the library runs on (common/device.cc).
bool has_eight_bit_attention(int capability) { return capability >= sm89::kFirstCapability; }

cudaError_t launch_eight_bit_attention(const Geometry& geometry, const EightBitParams& params,
                                       [[maybe_unused]] int capability, cudaStream_t stream) {
#ifdef RAINFUSION_SM90
  if (capability == 90) return sm90::launch_eight_bit_attention(geometry, params, stream);
#endif
  return sm89::launch_eight_bit_attention(geometry, params, stream);
}

cudaError_t launch_recall(const RecallParams& params, int capability, cudaStream_t stream) {
  for (const Architecture& row : kArchitectures) {
    if (covers(row, capability)) return row.recall(params, stream);
  }
  return cudaErrorNoKernelImageForDevice;
}

}  // namespace rainfusion
