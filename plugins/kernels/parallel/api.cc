// The C interface of parallel.h.

#include <algorithm>
#include <cstring>
#include <vector>

#include "boundary.h"
#include "parallel/attention.h"
#include "parallel/communicator.h"
#include "parallel/exchange.h"
#include "parallel/rows.h"
#include "parallel/tokens.h"
#include "rainfusion/parallel.h"

namespace rainfusion::parallel {
namespace {

Result new_id(const char* path, uint8_t* id) {
  if (id == nullptr) return invalid("id is a null pointer");
  const Nccl* nccl = nullptr;
  Result result = load_nccl(path, &nccl);
  if (!result.ok()) return result;
  NcclId made{};
  result = nccl->result(nccl->get_unique_id(&made), "make an id", nullptr);
  if (result.ok()) std::memcpy(id, made.bytes, sizeof(made.bytes));
  return result;
}

Result current_share(RainfusionShare* share) {
  if (share == nullptr) return invalid("share is a null pointer");
  std::shared_ptr<Communicator> communicator;
  Result result = current_communicator(&communicator);
  *share = communicator != nullptr ? communicator->share() : RainfusionShare{1, 0};
  return result;
}

// Calls `visit(place, row of the tensor)` for every row of a local tensor.
template <typename PlaceOf, typename Visit>
void for_rows(const Exchange& e, const PlaceOf& place_of, const Visit& visit) {
  for (int32_t b = 0; b < e.batch; ++b) {
    for (int32_t head = 0; head < e.heads.total; ++head) {
      for (int32_t token = 0; token < e.local(); ++token) {
        visit(place_of(e, b, head, token), e.tensor_row(b, head, token));
      }
    }
  }
}

Result pack_host(const Exchange& e, const void* tensor, void* sent, void* whole) {
  for_rows(e, packed, [&](const Place& place, int64_t row) {
    if (place.buffer == Place::kNowhere) return;
    auto* const to = static_cast<char*>(place.buffer == Place::kOwn ? whole : sent);
    std::memcpy(to + place.row * e.row_bytes, static_cast<const char*>(tensor) + row * e.row_bytes,
                static_cast<size_t>(e.row_bytes));
  });
  return {};
}

Result unpack_host(const Exchange& e, const void* whole, const void* arrived, void* tensor) {
  for_rows(e, unpacked, [&](const Place& place, int64_t row) {
    const void* const buffer = place.buffer == Place::kOwn ? whole : arrived;
    std::memcpy(static_cast<char*>(tensor) + row * e.row_bytes,
                static_cast<const char*>(buffer) + place.row * e.row_bytes,
                static_cast<size_t>(e.row_bytes));
  });
  return {};
}

template <typename Use>
Result with_exchange(const RainfusionProblem* local, const RainfusionShare* share, const Use& use) {
  Exchange exchange{};
  Result result = exchange_of(local, share, &exchange, nullptr);
  return result.ok() ? use(exchange) : result;
}

Result null_pointer() { return invalid("a pointer is null"); }

}  // namespace
}  // namespace rainfusion::parallel

using namespace rainfusion;
using namespace rainfusion::parallel;

RainfusionStatus rainfusion_communicator_id(const char* nccl, uint8_t* id) {
  return guarded([&] { return new_id(nccl, id); });
}

RainfusionStatus rainfusion_open_communicator(const char* nccl, int32_t device, const uint8_t* id,
                                              const RainfusionShare* share) {
  return guarded([&] {
    return share != nullptr ? open_communicator(nccl, device, id, *share) : null_pointer();
  });
}

RainfusionStatus rainfusion_check_communicator(int32_t device) {
  return guarded([&] { return check_communicator(device); });
}

RainfusionStatus rainfusion_close_communicator(int32_t device, int32_t abort) {
  return guarded([&] { return close_communicator(device, abort != 0); });
}

RainfusionStatus rainfusion_current_share(RainfusionShare* share) {
  return guarded([&] { return current_share(share); });
}

RainfusionStatus rainfusion_shared_problem(const RainfusionProblem* local,
                                           const RainfusionShare* share, RainfusionProblem* mine,
                                           char* message, size_t capacity) {
  return guarded(
      [&] {
        Exchange exchange{};
        return exchange_of(local, share, &exchange, mine);
      },
      message, capacity);
}

RainfusionStatus rainfusion_shared_workspace_size(const RainfusionProblem* local,
                                                  const RainfusionShare* share, size_t* bytes) {
  return guarded([&] { return shared_workspace_size(local, share, bytes); });
}

RainfusionStatus rainfusion_shared_workspace_bound(const RainfusionProblem* largest,
                                                   size_t* bytes) {
  return guarded([&] { return shared_workspace_bound(largest, bytes); });
}

RainfusionStatus rainfusion_shared_attention(const RainfusionProblem* local,
                                             const RainfusionTensors* tensors, void* workspace,
                                             size_t workspace_bytes, RainfusionStream stream) {
  return guarded(
      [&] { return shared_attention(local, tensors, workspace, workspace_bytes, stream); });
}

RainfusionStatus rainfusion_split_tokens(const RainfusionRows* rows, int64_t part_tokens,
                                         const void* whole, void* part, RainfusionStream stream) {
  return guarded([&] { return split_tokens(rows, part_tokens, whole, part, stream); });
}

RainfusionStatus rainfusion_gather_tokens(const RainfusionRows* rows, int64_t part_tokens,
                                          const void* part, void* whole, RainfusionStream stream) {
  return guarded([&] { return gather_tokens(rows, part_tokens, part, whole, stream); });
}

RainfusionStatus rainfusion_exchange_bytes(const RainfusionProblem* local,
                                           const RainfusionShare* share,
                                           RainfusionExchangeBytes* bytes) {
  return guarded([&] {
    return with_exchange(local, share, [&](const Exchange& e) {
      if (bytes == nullptr) return null_pointer();
      *bytes = {e.whole_bytes(), e.arrived_bytes()};
      return Result{};
    });
  });
}

RainfusionStatus rainfusion_transfers(const RainfusionProblem* local, const RainfusionShare* share,
                                      RainfusionDirection direction, RainfusionTransfer* transfers,
                                      int32_t* count) {
  return guarded([&] {
    return with_exchange(local, share, [&](const Exchange& e) {
      if (transfers == nullptr || count == nullptr) return null_pointer();
      const std::vector<RainfusionTransfer> found = e.transfers(direction);
      std::copy(found.begin(), found.end(), transfers);
      *count = static_cast<int32_t>(found.size());
      return Result{};
    });
  });
}

RainfusionStatus rainfusion_pack_host(const RainfusionProblem* local, const RainfusionShare* share,
                                      const void* tensor, void* sent, void* whole) {
  return guarded([&] {
    return with_exchange(local, share,
                         [&](const Exchange& e) { return pack_host(e, tensor, sent, whole); });
  });
}

RainfusionStatus rainfusion_unpack_host(const RainfusionProblem* local,
                                        const RainfusionShare* share, const void* whole,
                                        const void* arrived, void* tensor) {
  return guarded([&] {
    return with_exchange(local, share,
                         [&](const Exchange& e) { return unpack_host(e, whole, arrived, tensor); });
  });
}
