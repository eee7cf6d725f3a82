// Registers the plugins with one runtime as soon as this library is loaded: for
// trtexec --staticPlugins and polygraphy --plugins, which do no more than dlopen.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "interface_layouts.h"
#include "runtime_library.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept;

namespace rainfusion::tensorrt {
namespace {

constexpr bool kRtx = RAINFUSION_RUNTIME_RTX;
constexpr int32_t kMajor = RAINFUSION_RUNTIME_MAJOR;
constexpr const char* kSoname = RAINFUSION_RUNTIME_SONAME;

bool is_ours(const RuntimeLibrary& runtime) {
  return runtime.rtx == kRtx && runtime.major() == kMajor &&
         runtime.layout() != InterfaceLayout::kUnknown;
}

void refuse(const std::string& why) {
  std::fprintf(stderr,
               "RainFusion's plugins are not registered: this library is for %s and %s. Use the "
               "librainfusion_trt_static* of your TensorRT, or load librainfusion_trt.so with "
               "trtexec --dynamicPlugins or IPluginRegistry::loadLibrary.\n",
               kSoname, why.c_str());
}

void register_with(const RuntimeLibrary& runtime) {
  auto* const get_registry = runtime.symbol<void*()>("getPluginRegistry");
  if (get_registry == nullptr) return refuse(runtime.path + " has no getPluginRegistry");
  void* const registry = get_registry();

  using RegisterCreator = bool(void*, nvinfer1::IPluginCreatorInterface&, const char*) noexcept;
  const RegistryEntries& entries =
      runtime.layout() == InterfaceLayout::kTensorRT10 ? kRegistry10 : kRegistry11;
  auto* const register_creator = entry_of<RegisterCreator>(registry, entries.register_creator);

  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    if (!register_creator(registry, *creator, creator->getPluginNamespace())) {
      refuse("the registry turned " + std::string(creator->getPluginName()) +
             " down; is it registered already?");
    }
  }
}

__attribute__((constructor)) void register_on_load() {
  std::vector<RuntimeLibrary> runtimes = loaded_runtimes();
  if (runtimes.empty()) {
    // The tool loads plugins before its runtime. It stays loaded, so that both get the same one.
    if (dlopen(kSoname, RTLD_LAZY | RTLD_GLOBAL) == nullptr) {
      return refuse("that is neither loaded nor found on the library path");
    }
    runtimes = loaded_runtimes();
  }
  const auto ours = std::find_if(runtimes.begin(), runtimes.end(), is_ours);
  if (ours == runtimes.end()) return refuse("this process has " + runtimes.front().name());
  register_with(*ours);
}

}  // namespace
}  // namespace rainfusion::tensorrt
