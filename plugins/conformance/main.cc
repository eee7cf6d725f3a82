// Drives librainfusion_trt.so as TensorRT does and reports what does not conform.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "checks.h"

namespace {

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

}  // namespace

int main(int argc, char** argv) {
  const bool need_gpu = argc == 3 && std::strcmp(argv[2], "--gpu") == 0;
  if (argc < 2 || (argc == 3 && !need_gpu) || argc > 3) {
    std::fprintf(stderr, "usage: %s librainfusion_trt.so [--gpu]\n  --gpu  fail without a GPU\n",
                 argv[0]);
    return 2;
  }
  try {
    trt_host::PluginLibrary library(argv[1]);
    conformance::Report report;
    conformance::check_targets(library, report);
    const bool gpu = has_gpu();
    if (gpu) {
      const std::string refused = conformance::check_gpu(library, report);
      if (!refused.empty()) {
        std::printf("nothing else checked: %s\n", refused.c_str());
        return 1;
      }
    }
    conformance::check_protocol(library, report);
    conformance::check_workspaces(library, report);
    if (gpu) {
      conformance::check_execution(library, report);
    } else {
      std::printf("no GPU: execution not checked\n");
    }
    std::printf("%d checks, %d failed\n", report.checks(), report.failures());
    return report.failures() == 0 && (gpu || !need_gpu) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
