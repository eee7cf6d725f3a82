// The few functions of NCCL that an exchange takes, found by dlopen.
//
// Declared here and not taken from nccl.h, so that the library builds without NCCL and links none:
// PyTorch brings its own, and a process should have one. What is declared has kept its form since
// NCCL 2.7, where ncclSend came: an opaque communicator, an id of 128 bytes that goes by value,
// results and element types as 32-bit enums (ncclSuccess 0, ncclInProgress 7, ncclInt8 0), see
// https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/types.html.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "common/result.h"
#include "rainfusion/parallel.h"

namespace rainfusion::parallel {

using NcclCommunicator = void*;

enum NcclResult : int { kNcclSuccess = 0, kNcclInProgress = 7 };
enum NcclType : int { kNcclBytes = 0 };

struct NcclId {
  char bytes[RAINFUSION_COMMUNICATOR_ID_BYTES];
};

struct Nccl {
  NcclResult (*get_version)(int* version);
  NcclResult (*get_unique_id)(NcclId* id);
  NcclResult (*comm_init_rank)(NcclCommunicator* communicator, int ranks, NcclId id, int rank);
  NcclResult (*comm_destroy)(NcclCommunicator communicator);
  NcclResult (*comm_abort)(NcclCommunicator communicator);
  NcclResult (*comm_get_async_error)(NcclCommunicator communicator, NcclResult* error);
  const char* (*get_error_string)(NcclResult result);
  const char* (*get_last_error)(NcclCommunicator communicator);
  NcclResult (*group_start)();
  NcclResult (*group_end)();
  NcclResult (*send)(const void* data, size_t count, NcclType type, int peer,
                     NcclCommunicator communicator, cudaStream_t stream);
  NcclResult (*receive)(void* data, size_t count, NcclType type, int peer,
                        NcclCommunicator communicator, cudaStream_t stream);

  // The one place where a result of NCCL becomes a status.
  Result result(NcclResult given, const char* what, NcclCommunicator communicator) const;
};

// That of the process, loaded at most once: what it has already, else `path` (or null), else what
// the linker finds.
Result load_nccl(const char* path, const Nccl** nccl);

}  // namespace rainfusion::parallel
