// The communicators of this process, one a device.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <vector>

#include "common/result.h"
#include "parallel/nccl.h"
#include "rainfusion/parallel.h"

namespace rainfusion::parallel {

class Communicator {
 public:
  Communicator(const Nccl& nccl, NcclCommunicator communicator, const RainfusionShare& share)
      : nccl_(nccl), communicator_(communicator), share_(share) {}

  const RainfusionShare& share() const { return share_; }

  // Enqueues transfers from one buffer to another as one group.
  Result transfer(const std::vector<RainfusionTransfer>& transfers, const void* sent,
                  void* received, cudaStream_t stream);

  // What NCCL has noticed meanwhile.
  Result check();

  Result close(bool abort);

 private:
  const Nccl& nccl_;
  std::timed_mutex mutex_;         // of NCCL's calls, which are for one thread at a time
  NcclCommunicator communicator_;  // null once closed
  RainfusionShare share_;
};

Result open_communicator(const char* nccl, int32_t device, const uint8_t* id,
                         const RainfusionShare& share);
Result check_communicator(int32_t device);
Result close_communicator(int32_t device, bool abort);

// That of the current device; null without one.
Result current_communicator(std::shared_ptr<Communicator>* communicator);

}  // namespace rainfusion::parallel
