// A real runtime's registry loads the library, finds its plugin, lets it go and takes it again.
#include "checks.h"

namespace conformance {

void check_registry(const trt_host::RealRuntime& runtime, trt_host::Log& log,
                    const std::string& path, Report& report) {
  report.begin("registry");
  log.clear();
  runtime.provoke();
  report.expect(log.has("createInferRefitter"), "no message of the runtime itself" + log.all());

  const auto found = [&](const char* version, const char* space) {
    return runtime.creator("RainFusionAttention", version, space) != nullptr;
  };
  report.expect(!found("1", "rainfusion"), "the plugin is there before its library");
  report.expect(runtime.load("/nowhere.so") == nullptr, "a library that is not there");
  for (int i = 0; i < 2; ++i) {
    void* const library = runtime.load(path);
    if (!report.expect(library != nullptr, "the registry cannot load " + path)) return;
    report.expect(runtime.load(path) == nullptr, "the same plugin a second time");
    report.expect(found("1", "rainfusion"), "the library's plugin is not found");
    report.expect(!found("2", "rainfusion") && !found("1", ""), "another plugin is found");
    runtime.unload(library);
    report.expect(!found("1", "rainfusion"), "the plugin outlives its library");
  }
}

}  // namespace conformance
