// The two copies of an exchange. A thread copies 16 bytes of a row; threads side by side copy rows
// of tokens side by side, which lie together in the tensor.

#include <algorithm>
#include <cstdint>

#include "parallel/copies.h"
#include "parallel/rows.h"

namespace rainfusion::parallel {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;
constexpr int32_t kChunk = sizeof(uint4);

template <bool kPack>
__global__ void __launch_bounds__(kThreads)
    copy_rows(Exchange e, const uint4* from_tensor, uint4* to_tensor, uint4* own, uint4* other) {
  const int32_t chunks = e.row_bytes / kChunk;
  const int32_t tokens = e.local();
  const int64_t total = static_cast<int64_t>(e.batch) * e.heads.total * tokens * chunks;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total;
       i += step) {
    const int64_t row = i / chunks;  // of the tensor
    const auto chunk = static_cast<int32_t>(i - row * chunks);
    const int64_t plane = row / tokens;
    const auto token = static_cast<int32_t>(row - plane * tokens);
    const auto b = static_cast<int32_t>(plane / e.heads.total);
    const auto head = static_cast<int32_t>(plane - static_cast<int64_t>(b) * e.heads.total);
    const Place place = kPack ? packed(e, b, head, token) : unpacked(e, b, head, token);
    if (place.buffer == Place::kNowhere) continue;
    uint4* const there = (place.buffer == Place::kOwn ? own : other) + place.row * chunks + chunk;
    if (kPack) {
      *there = from_tensor[i];
    } else {
      to_tensor[i] = *there;
    }
  }
}

unsigned int blocks_of(const Exchange& e) {
  const int64_t threads = e.tensor_bytes() / kChunk;
  return static_cast<unsigned int>(
      std::min<int64_t>((threads + kThreads - 1) / kThreads, kMostBlocks));
}

}  // namespace

cudaError_t launch_pack(const Exchange& exchange, const void* tensor, void* sent, void* whole,
                        cudaStream_t stream) {
  copy_rows<true><<<blocks_of(exchange), kThreads, 0, stream>>>(
      exchange, static_cast<const uint4*>(tensor), nullptr, static_cast<uint4*>(whole),
      static_cast<uint4*>(sent));
  return cudaGetLastError();
}

cudaError_t launch_unpack(const Exchange& exchange, const void* whole, const void* arrived,
                          void* tensor, cudaStream_t stream) {
  // Read only, though one kernel serves both directions.
  copy_rows<false><<<blocks_of(exchange), kThreads, 0, stream>>>(
      exchange, nullptr, static_cast<uint4*>(tensor), static_cast<uint4*>(const_cast<void*>(whole)),
      static_cast<uint4*>(const_cast<void*>(arrived)));
  return cudaGetLastError();
}

}  // namespace rainfusion::parallel
