#include "parallel/communicator.h"

#include <chrono>
#include <cstring>
#include <map>
#include <string>
#include <utility>

namespace rainfusion::parallel {
namespace {

constexpr std::chrono::seconds kPatience{5};  // for a call of NCCL in another thread

struct Registry {
  std::mutex mutex;
  std::map<int32_t, std::shared_ptr<Communicator>> communicators;  // by device

  std::shared_ptr<Communicator> find(int32_t device) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = communicators.find(device);
    return found != communicators.end() ? found->second : nullptr;
  }
};

Registry& registry() {
  static Registry* const all = new Registry;  // threads may ask until the process ends
  return *all;
}

Result broken(const std::string& why) { return {RAINFUSION_COMMUNICATION_ERROR, why}; }

Result none_of(int32_t device) {
  return invalid("device " + std::to_string(device) + " has no communicator");
}

}  // namespace

Result Communicator::transfer(const std::vector<RainfusionTransfer>& transfers, const void* sent,
                              void* received, cudaStream_t stream) {
  const std::lock_guard<std::timed_mutex> lock(mutex_);
  if (communicator_ == nullptr) return broken("the communicator was closed: another GPU failed");
  NcclResult result = nccl_.group_start();
  if (result != kNcclSuccess) return nccl_.result(result, "start an exchange", communicator_);
  for (const RainfusionTransfer& t : transfers) {
    const auto* const from = static_cast<const char*>(sent) + t.sent_begin;
    auto* const to = static_cast<char*>(received) + t.received_begin;
    const auto count = [](int64_t bytes) { return static_cast<size_t>(bytes); };
    result = nccl_.send(from, count(t.sent_bytes), kNcclBytes, t.peer, communicator_, stream);
    if (result != kNcclSuccess) break;
    result = nccl_.receive(to, count(t.received_bytes), kNcclBytes, t.peer, communicator_, stream);
    if (result != kNcclSuccess) break;
  }
  const NcclResult end = nccl_.group_end();  // in any case, or the thread stays inside the group
  return nccl_.result(result != kNcclSuccess ? result : end, "exchange tokens", communicator_);
}

Result Communicator::check() {
  const std::unique_lock<std::timed_mutex> lock(mutex_, std::try_to_lock);
  if (!lock || communicator_ == nullptr) return {};  // in use, so that its user will see
  NcclResult error = kNcclSuccess;
  const NcclResult asked = nccl_.comm_get_async_error(communicator_, &error);
  if (asked == kNcclSuccess && error == kNcclInProgress) return {};
  return nccl_.result(asked != kNcclSuccess ? asked : error, "go on", communicator_);
}

Result Communicator::close(bool abort) {
  NcclCommunicator closing = nullptr;
  {
    const std::unique_lock<std::timed_mutex> lock(mutex_, kPatience);
    if (!lock) return broken("a call of NCCL in another thread does not come back");
    std::swap(closing, communicator_);
  }
  if (closing == nullptr) return {};
  // Without the lock: NCCL waits here until no captured graph holds the communicator, and the
  // thread that frees the graphs may be about to enqueue, which has to fail and not to wait.
  const NcclResult result = abort ? nccl_.comm_abort(closing) : nccl_.comm_destroy(closing);
  return nccl_.result(result, "end a communicator", nullptr);
}

Result open_communicator(const char* path, int32_t device, const uint8_t* id,
                         const RainfusionShare& share) {
  if (id == nullptr) return invalid("id is a null pointer");
  if (share.parts < 2 || share.rank < 0 || share.rank >= share.parts) {
    return invalid("rank = " + std::to_string(share.rank) + " of parts = " +
                   std::to_string(share.parts) + ": a communicator has two GPUs or more");
  }
  if (registry().find(device) != nullptr) {
    return invalid("device " + std::to_string(device) +
                   " has a communicator already: close the Pipeline that made it first");
  }
  const Nccl* nccl = nullptr;
  Result result = load_nccl(path, &nccl);
  if (!result.ok()) return result;
  const cudaError_t error = cudaSetDevice(device);  // NCCL takes the current one, of each thread
  if (error != cudaSuccess) return cuda_result(error, "choosing the device");
  NcclId shared;
  std::memcpy(shared.bytes, id, sizeof(shared.bytes));
  NcclCommunicator communicator = nullptr;
  const NcclResult made = nccl->comm_init_rank(&communicator, share.parts, shared, share.rank);
  if (made != kNcclSuccess) return nccl->result(made, "connect the GPUs", nullptr);
  auto entry = std::make_shared<Communicator>(*nccl, communicator, share);
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().communicators[device] = std::move(entry);
  return {};
}

Result check_communicator(int32_t device) {
  const auto found = registry().find(device);
  return found != nullptr ? found->check() : none_of(device);
}

Result close_communicator(int32_t device, bool abort) {
  const auto found = registry().find(device);
  if (found == nullptr) return none_of(device);
  Result result = found->close(abort);
  // One that was aborted stays: a GPU that went on alone would compute something else.
  if (abort || !result.ok()) return result;
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().communicators.erase(device);
  return {};
}

Result current_communicator(std::shared_ptr<Communicator>* communicator) {
  {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    if (registry().communicators.empty()) {
      communicator->reset();
      return {};
    }
  }
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return cuda_result(error, "asking for the device");
  *communicator = registry().find(device);
  return {};
}

}  // namespace rainfusion::parallel
