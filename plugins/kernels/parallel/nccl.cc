#include "parallel/nccl.h"

#include <dlfcn.h>

#include <mutex>
#include <string>

namespace rainfusion::parallel {
namespace {

constexpr const char* kSoname = "libnccl.so.2";
constexpr int kOldest = 21300;  // 2.13, which has ncclGetLastError

Result missing(const std::string& why) {
  return {RAINFUSION_COMMUNICATION_ERROR,
          "NCCL, by which GPUs exchange tokens, cannot be used (" + why +
              "): pip install nvidia-nccl-cu13, or nvidia-nccl-cu12 beside a PyTorch of CUDA 12"};
}

std::string dl_error() {
  const char* const error = dlerror();
  return error != nullptr ? error : "no reason given";
}

Result open(const char* path, void** handle) {
  *handle = dlopen(kSoname, RTLD_NOW | RTLD_NOLOAD);
  if (*handle != nullptr) return {};
  if (path != nullptr && *path != '\0') {
    *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    return *handle != nullptr ? Result{} : missing(dl_error());
  }
  *handle = dlopen(kSoname, RTLD_NOW | RTLD_LOCAL);
  return *handle != nullptr ? Result{} : missing(dl_error());
}

template <typename Function>
bool find(void* handle, const char* name, Function** function, std::string* absent) {
  *function = reinterpret_cast<Function*>(dlsym(handle, name));
  if (*function == nullptr) *absent = name;
  return *function != nullptr;
}

Result fill(void* handle, Nccl* n) {
  std::string absent;
  const bool whole = find(handle, "ncclGetVersion", &n->get_version, &absent) &&
                     find(handle, "ncclGetUniqueId", &n->get_unique_id, &absent) &&
                     find(handle, "ncclCommInitRank", &n->comm_init_rank, &absent) &&
                     find(handle, "ncclCommDestroy", &n->comm_destroy, &absent) &&
                     find(handle, "ncclCommAbort", &n->comm_abort, &absent) &&
                     find(handle, "ncclCommGetAsyncError", &n->comm_get_async_error, &absent) &&
                     find(handle, "ncclGetErrorString", &n->get_error_string, &absent) &&
                     find(handle, "ncclGetLastError", &n->get_last_error, &absent) &&
                     find(handle, "ncclGroupStart", &n->group_start, &absent) &&
                     find(handle, "ncclGroupEnd", &n->group_end, &absent) &&
                     find(handle, "ncclSend", &n->send, &absent) &&
                     find(handle, "ncclRecv", &n->receive, &absent);
  if (!whole) return missing("it has no function " + absent);
  int version = 0;
  if (n->get_version(&version) != kNcclSuccess || version < kOldest) {
    return missing("version " + std::to_string(version) + " is older than " +
                   std::to_string(kOldest));
  }
  return {};
}

}  // namespace

Result Nccl::result(NcclResult given, const char* what, NcclCommunicator communicator) const {
  if (given == kNcclSuccess) return {};
  const char* const more = get_last_error(communicator);
  const std::string detail = more != nullptr && *more != '\0' ? std::string("; ") + more : "";
  return {RAINFUSION_COMMUNICATION_ERROR,
          std::string("NCCL cannot ") + what + ": " + get_error_string(given) + detail};
}

Result load_nccl(const char* path, const Nccl** nccl) {
  static std::mutex mutex;
  static Nccl loaded;
  static bool is_loaded = false;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!is_loaded) {
    void* handle = nullptr;
    Result result = open(path, &handle);
    if (!result.ok()) return result;
    result = fill(handle, &loaded);
    if (!result.ok()) {
      dlclose(handle);
      return result;
    }
    is_loaded = true;  // for good: communicators and graphs hold its code
  }
  *nccl = &loaded;
  return {};
}

}  // namespace rainfusion::parallel
