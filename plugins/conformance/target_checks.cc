#include <cuda_runtime_api.h>

#include <string>

#include "checks.h"
#include "common/gpu_targets.h"
#include "rainfusion_layer.h"

namespace conformance {
namespace {

using rainfusion::targets_run_on;

struct Case {
  const char* targets;
  int major;
  int minor;
  bool runs;
};

constexpr Case kCases[] = {
    // Machine code: its own major version, no older minor.
    {"sm_80", 8, 0, true},
    {"sm_80", 8, 9, true},
    {"sm_80", 9, 0, false},
    {"sm_80", 7, 5, false},
    {"sm_86", 8, 0, false},
    {"sm_86", 8, 9, true},
    {"sm_90", 8, 0, false},
    {"sm_90", 10, 0, false},
    {"sm_100", 10, 3, true},
    {"sm_100", 12, 0, false},
    {"sm_120", 12, 1, true},
    {"sm_120", 10, 0, false},
    // PTX: everything that is no older.
    {"compute_80", 8, 0, true},
    {"compute_80", 9, 0, true},
    {"compute_80", 12, 1, true},
    {"compute_90", 8, 9, false},
    {"compute_89", 8, 6, false},
    {"compute_120", 10, 3, false},
    // One GPU alone.
    {"sm_90a", 9, 0, true},
    {"sm_90a", 10, 0, false},
    {"sm_100a", 10, 3, false},
    {"compute_90a", 9, 0, true},
    {"compute_90a", 10, 0, false},
    {"compute_120a", 12, 1, false},
    // A family.
    {"sm_100f", 10, 3, true},
    {"sm_103f", 10, 0, false},
    {"compute_100f", 10, 3, true},
    {"compute_100f", 12, 0, false},
    // Lists.
    {"sm_80 sm_90 compute_90 sm_120 compute_120 sm_90a", 8, 6, true},
    {"sm_80 sm_90 compute_90 sm_120 compute_120 sm_90a", 10, 0, true},
    {"sm_80 sm_120", 9, 0, false},
    {"sm_90 sm_90a", 8, 0, false},
    {"sm_90 sm_90a", 9, 0, true},
    // No targets.
    {"", 8, 0, false},
    {"unknown", 8, 0, false},
    {"sm_", 0, 0, false},
    {"sm_80x", 8, 0, false},
};

}  // namespace

void check_targets(trt_host::PluginLibrary& library, Report& report) {
  report.begin("targets");
  for (const Case& c : kCases) {
    const std::string gpu = std::to_string(c.major) + "." + std::to_string(c.minor);
    report.expect(targets_run_on(c.targets, c.major, c.minor) == c.runs,
                  std::string(c.targets) + (c.runs ? " runs on " : " does not run on ") + gpu);
  }

  // The library under test, by the list that it names itself.
  const std::string info =
      library.symbol<decltype(rainfusion_build_info)>("rainfusion_build_info")();
  const std::string targets = info.substr(info.find(' ') + 1);
  auto* const check = library.symbol<decltype(rainfusion_check_device)>("rainfusion_check_device");
  for (int capability = 50; capability < 140; ++capability) {
    const int major = capability / 10;
    const int minor = capability % 10;
    const bool runs = capability >= 80 && targets_run_on(targets, major, minor);
    char message[1024] = "";
    const RainfusionStatus status = check(major, minor, message, sizeof(message));
    const std::string words(message);
    report.expect(status == (runs ? RAINFUSION_SUCCESS : RAINFUSION_UNSUPPORTED),
                  std::to_string(capability) + " on " + targets + ": " + words);
    const std::string remedy = "RAINFUSION_CUDA_ARCHITECTURES=" + std::to_string(capability) +
                               " rainfusion-trt build-plugin";
    const bool named =
        words.find(targets) != std::string::npos && words.find(remedy) != std::string::npos;
    report.expect(named == (!runs && capability >= 80), "words of the error: " + words);
  }
}

std::string check_gpu(trt_host::PluginLibrary& library, Report& report) {
  report.begin("GPU");
  cudaDeviceProp gpu{};
  if (cudaGetDeviceProperties(&gpu, 0) != cudaSuccess) return "reading the GPU's properties failed";
  char message[1024] = "";
  library.symbol<decltype(rainfusion_check_device)>("rainfusion_check_device")(
      gpu.major, gpu.minor, message, sizeof(message));
  const std::string words(message);

  library.log().clear();
  const Size clip{1, 1, 2, 3, 5, 0, 64};
  trt_host::Engine engine;
  trt_host::Builder builder(rainfusion_creator(library), make_attributes());
  builder.build(make_inputs(clip, DataType::kHALF, false), &engine);
  const trt_host::Context context(rainfusion_creator(library), engine);
  report.expect(static_cast<bool>(context) == words.empty(),
                "a context and the device check disagree: " + words);
  report.expect(words.empty() || library.log().has(words),
                "the log lacks the words of the device check:" + library.log().all());
  library.log().clear();
  return words;
}

}  // namespace conformance
