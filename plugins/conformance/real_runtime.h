// A TensorRT library with its plugin registry, called as the layout of its own version wants.
//
// A lean runtime will do. Neither it nor a GPU is needed to run checks without one.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "log.h"
#include "tensorrt/interface_layouts.h"

namespace trt_host {

class RealRuntime {
 public:
  // `log` gets what the runtime logs, and what plugins do.
  RealRuntime(const std::string& path, Log& log) : logger10_(log), logger11_(log) {
    // DEEPBIND: the runtime is to find its own version, and not that of this program.
    handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL | RTLD_DEEPBIND);
    if (handle_ == nullptr) throw std::runtime_error(dlerror());
    version_ = symbol<int32_t()>("getInferLibVersion")();
    const int32_t major = version_ / 10000;
    if (major != 10 && major != 11) {
      throw std::runtime_error(path + " has version " + std::to_string(version_) +
                               "; the layouts of TensorRT 10 and 11 are known");
    }
    entries_ = major == 10 ? rainfusion::tensorrt::kRegistry10 : rainfusion::tensorrt::kRegistry11;
    logger_ = major == 10 ? static_cast<void*>(&logger10_) : &logger11_;
    symbol<void*(void*, int32_t)>("createInferRuntime_INTERNAL")(logger_, version_);
    // Where there is no GPU that makes no runtime, and then there is no logger for plugins either.
    if (symbol<void*()>("getLogger")() == nullptr) log.read_stderr();
    registry_ = symbol<void*()>("getPluginRegistry")();
  }

  RealRuntime(const RealRuntime&) = delete;
  RealRuntime& operator=(const RealRuntime&) = delete;

  // Of the runtime: major * 10000 + minor * 100 + patch.
  int32_t version() const { return version_; }

  // Has the runtime itself log an error: that there is no engine to refit.
  void provoke() const {
    using Create = void*(void*, void*, int32_t);
    symbol<Create>("createInferRefitter_INTERNAL")(nullptr, logger_, version_);
  }

  // Null where it cannot be loaded, or where one of its plugins is registered already.
  void* load(const std::string& path) const {
    return entry<void*(void*, const char*)>(entries_.load_library)(registry_, path.c_str());
  }

  void unload(void* library) const {
    entry<void(void*, void*)>(entries_.deregister_library)(registry_, library);
  }

  // Null where none is registered.
  nvinfer1::IPluginCreatorInterface* creator(const char* name, const char* version,
                                             const char* space) const {
    using Get = nvinfer1::IPluginCreatorInterface*(void*, const char*, const char*, const char*);
    return entry<Get>(entries_.get_creator)(registry_, name, version, space);
  }

 private:
  struct LoggerAt10 final : rainfusion::tensorrt::Logger10 {
    explicit LoggerAt10(Log& log) : log_(log) {}
    void log(nvinfer1::ILogger::Severity severity, const char* message) noexcept override {
      log_.log(severity, message);
    }
    Log& log_;
  };

  struct LoggerAt11 final : rainfusion::tensorrt::Logger11 {
    explicit LoggerAt11(Log& log) : log_(log) {}
    nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
    void log(nvinfer1::ILogger::Severity severity, const char* message) noexcept override {
      log_.log(severity, message);
    }
    Log& log_;
  };

  template <typename Function>
  Function* symbol(const char* name) const {
    void* const address = dlsym(handle_, name);
    if (address == nullptr) throw std::runtime_error(std::string("the runtime has no ") + name);
    return reinterpret_cast<Function*>(address);
  }

  template <typename Function>
  Function* entry(int index) const {
    return rainfusion::tensorrt::entry_of<Function>(registry_, index);
  }

  LoggerAt10 logger10_;
  LoggerAt11 logger11_;
  void* logger_ = nullptr;
  void* handle_ = nullptr;
  int32_t version_ = 0;
  rainfusion::tensorrt::RegistryEntries entries_{};
  void* registry_ = nullptr;
};

}  // namespace trt_host
