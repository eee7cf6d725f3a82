#include "runtime_library.h"

#include <dlfcn.h>
#include <link.h>

namespace rainfusion::tensorrt {
namespace {

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// `path` is empty for the main program, which may have a runtime linked in.
std::optional<RuntimeLibrary> open_loaded(const std::string& path) {
  void* const handle = dlopen(path.empty() ? nullptr : path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return std::nullopt;
  // The runtime outlives every plugin, so the reference that dlopen counted can go.
  dlclose(handle);
  auto* const version = reinterpret_cast<int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
  if (version == nullptr) return std::nullopt;
  const bool rtx = starts_with(file_name(path), "libtensorrt_rtx");
  return RuntimeLibrary{path, rtx, version(), handle};
}

int collect(dl_phdr_info* info, size_t, void* data) {
  const std::string name = file_name(info->dlpi_name);
  if (starts_with(name, "libnvinfer.so") || starts_with(name, "libnvinfer_lean.so") ||
      starts_with(name, "libtensorrt_rtx.so")) {
    static_cast<std::vector<std::string>*>(data)->emplace_back(info->dlpi_name);
  }
  return 0;
}

}  // namespace

InterfaceLayout RuntimeLibrary::layout() const {
  if (rtx) {
    return major() == 1 && version >= 10600 ? InterfaceLayout::kTensorRT11
                                            : InterfaceLayout::kUnknown;
  }
  if (major() == 10) return InterfaceLayout::kTensorRT10;
  return major() == 11 ? InterfaceLayout::kTensorRT11 : InterfaceLayout::kUnknown;
}

std::string RuntimeLibrary::name() const {
  return std::string(rtx ? "TensorRT for RTX " : "TensorRT ") + std::to_string(major()) + "." +
         std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

void* RuntimeLibrary::find_symbol(const char* name) const { return dlsym(handle, name); }

std::optional<RuntimeLibrary> runtime_at(const void* address) {
  Dl_info info{};
  link_map* map = nullptr;
  if (dladdr1(address, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0) {
    return std::nullopt;
  }
  return open_loaded(map->l_name);
}

std::vector<RuntimeLibrary> loaded_runtimes() {
  std::vector<std::string> paths;
  dl_iterate_phdr(collect, &paths);
  std::vector<RuntimeLibrary> runtimes;
  for (const std::string& path : paths) {
    if (auto runtime = open_loaded(path)) runtimes.push_back(*runtime);
  }
  return runtimes;
}

}  // namespace rainfusion::tensorrt
