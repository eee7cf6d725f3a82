#include "parallel/tokens.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/parts.h"

namespace rainfusion::parallel {
namespace {

// Between rows of cudaMemcpy2D, on every GPU (cudaDeviceProp::memPitch).
constexpr size_t kMostPitch = INT32_MAX;

// Whose part of how many tokens.
struct Cut {
  std::shared_ptr<Communicator> communicator;  // null where the GPU is alone
  Parts parts;
  int32_t rank;
};

Result cut_of(const RainfusionRows* rows, int64_t part_tokens, const void* from, const void* to,
              Cut* cut) {
  if (rows == nullptr || from == nullptr || to == nullptr) {
    return invalid("rows or a tensor is a null pointer");
  }
  if (rows->outer < 1 || rows->row_bytes < 1 || rows->tokens < 1 || rows->tokens > INT32_MAX) {
    return invalid("rows has a size that is none");
  }
  Result result = current_communicator(&cut->communicator);
  if (!result.ok()) return result;
  const RainfusionShare share =
      cut->communicator != nullptr ? cut->communicator->share() : RainfusionShare{1, 0};
  cut->parts = {static_cast<int32_t>(rows->tokens), share.parts};
  cut->rank = share.rank;
  const int32_t own = cut->parts.size(cut->rank);
  if (part_tokens == own) return {};
  return invalid("a part has " + std::to_string(part_tokens) + " tokens, and that of GPU " +
                 std::to_string(share.rank) + " of " + std::to_string(share.parts) + " is " +
                 std::to_string(own) + " of " + std::to_string(rows->tokens));
}

// Copies the rows of this GPU between a whole and a part, in either direction.
Result copy(void* to, int64_t to_tokens, const void* from, int64_t from_tokens,
            const RainfusionRows& rows, int64_t tokens, cudaStream_t stream) {
  constexpr const char* kWhat = "copying the tokens of a GPU";
  const auto bytes = [&](int64_t count) { return static_cast<size_t>(count * rows.row_bytes); };
  const size_t pitch = std::max(bytes(to_tokens), bytes(from_tokens));
  if (rows.outer > 1 && pitch <= kMostPitch) {
    return cuda_result(
        cudaMemcpy2DAsync(to, bytes(to_tokens), from, bytes(from_tokens), bytes(tokens),
                          static_cast<size_t>(rows.outer), cudaMemcpyDeviceToDevice, stream),
        kWhat);
  }
  for (int64_t i = 0; i < rows.outer; ++i) {
    const cudaError_t error =
        cudaMemcpyAsync(static_cast<char*>(to) + bytes(i * to_tokens),
                        static_cast<const char*>(from) + bytes(i * from_tokens), bytes(tokens),
                        cudaMemcpyDeviceToDevice, stream);
    if (error != cudaSuccess) return cuda_result(error, kWhat);
  }
  return {};
}

}  // namespace

Result split_tokens(const RainfusionRows* rows, int64_t part_tokens, const void* whole, void* part,
                    cudaStream_t stream) {
  Cut cut{};
  Result result = cut_of(rows, part_tokens, whole, part, &cut);
  if (!result.ok()) return result;
  const int64_t begin = cut.parts.begin(cut.rank) * rows->row_bytes;
  return copy(part, part_tokens, static_cast<const char*>(whole) + begin, rows->tokens, *rows,
              part_tokens, stream);
}

Result gather_tokens(const RainfusionRows* rows, int64_t part_tokens, const void* part, void* whole,
                     cudaStream_t stream) {
  Cut cut{};
  Result result = cut_of(rows, part_tokens, part, whole, &cut);
  if (!result.ok()) return result;
  const int64_t begin = cut.parts.begin(cut.rank) * rows->row_bytes;
  result = copy(static_cast<char*>(whole) + begin, rows->tokens, part, part_tokens, *rows,
                part_tokens, stream);
  if (!result.ok() || cut.communicator == nullptr) return result;
  std::vector<RainfusionTransfer> transfers;
  const int64_t row = rows->row_bytes;
  for (int32_t round = 1; round < cut.parts.count; ++round) {
    const int32_t peer = (cut.rank + round) % cut.parts.count;
    for (int64_t i = 0; i < rows->outer; ++i) {
      transfers.push_back({peer, 0, i * part_tokens * row, part_tokens * row,
                           (i * rows->tokens + cut.parts.begin(peer)) * row,
                           cut.parts.size(peer) * row});
    }
  }
  return cut.communicator->transfer(transfers, part, whole, stream);
}

}  // namespace rainfusion::parallel
