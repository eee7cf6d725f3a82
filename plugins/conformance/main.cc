// Drives librainfusion_trt.so as TensorRT does and reports what does not conform.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>

#include "checks.h"

namespace {

struct Options {
  std::string library;
  std::string runtime;  // empty for none
  bool need_gpu = false;
};

constexpr const char* kUsage =
    "usage: %s librainfusion_trt.so [--runtime libnvinfer.so] [--gpu]\n"
    "  --runtime  drive the plugin that this TensorRT's registry has; a lean runtime will do\n"
    "  --gpu      fail without a GPU\n";

bool parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--gpu") {
      options->need_gpu = true;
    } else if (word == "--runtime" && i + 1 < argc) {
      options->runtime = argv[++i];
    } else if (options->library.empty() && word[0] != '-') {
      options->library = word;
    } else {
      return false;
    }
  }
  return !options->library.empty();
}

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// The exit status.
int check(const Options& options) {
  conformance::Report report;
  trt_host::Log log;
  std::unique_ptr<trt_host::RealRuntime> runtime;
  if (!options.runtime.empty()) {
    runtime = std::make_unique<trt_host::RealRuntime>(options.runtime, log);
    std::printf("in the registry of TensorRT %d\n", runtime->version());
    conformance::check_registry(*runtime, log, options.library, report);
  }
  trt_host::PluginLibrary library(options.library, log, runtime.get());
  conformance::check_targets(library, report);
  conformance::check_windows_geometry(report);
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
  conformance::check_parallel(library, report);
  conformance::check_precision(library, report);
  if (gpu) {
    conformance::check_execution(library, report);
  } else {
    std::printf("no GPU: execution not checked\n");
  }
  std::printf("%d checks, %d failed\n", report.checks(), report.failures());
  return report.failures() == 0 && (gpu || !options.need_gpu) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, &options)) {
    std::fprintf(stderr, kUsage, argv[0]);
    return 2;
  }
  try {
    return check(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
