// What the checks of the protocol share: the library, the report, and the sizes of their clips.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "rainfusion_layer.h"

namespace conformance {

inline constexpr Size kSmall{1, 2, 2, 3, 5, 0, 64};
inline constexpr Size kClip{2, 3, 5, 9, 11, 37, 64};
inline constexpr Size kLarge{4, 3, 13, 30, 45, 226, 64};

// What an engine's fields have beside the attributes.
inline constexpr const char* kLayoutName = "engine_layout";
inline constexpr const char* kWorkspaceName = "workspace_bytes";
inline constexpr int32_t kLayout = RAINFUSION_WORKSPACE_LAYOUT;

// The library's methods, their names and numbers.
inline std::vector<std::pair<std::string, RainfusionMethod>> methods_of(
    trt_host::PluginLibrary& library) {
  auto* const name_of = library.symbol<decltype(rainfusion_method_name)>("rainfusion_method_name");
  std::vector<std::pair<std::string, RainfusionMethod>> methods;
  while (true) {
    const auto code = static_cast<RainfusionMethod>(methods.size());
    const char* const name = name_of(code);
    if (name == nullptr) return methods;
    methods.emplace_back(name, code);
  }
}

struct Suite {
  trt_host::PluginLibrary& library;
  Report& report;

  nvinfer1::IPluginCreatorV3One& creator() { return rainfusion_creator(library); }

  void expect_error(bool refused, const std::string& words, const std::string& what) {
    report.expect(refused, what + " was accepted");
    report.expect(library.log().errors() > 0 && library.log().has(words),
                  what + ": no error with '" + words + "' in the log:" + library.log().all());
    library.log().clear();
  }
};

// Runs checks one by one, each with an empty log.
inline void run_checks(trt_host::PluginLibrary& library, Report& report,
                       std::initializer_list<void (*)(Suite&)> checks) {
  Suite suite{library, report};
  for (auto* const check : checks) {
    library.log().clear();
    check(suite);
  }
}

}  // namespace conformance
